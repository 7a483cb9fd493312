"""Text without spaces: learned from in parts, and the tokenizer that comes of it is right."""

import base64
import random

import pytest
from tokenizers import normalizers, pre_tokenizers

from minitransformer.data import Text, encode, train_tokenizer
from minitransformer.data.long_words import LONGEST, cut_long_words

DRAWN = random.Random(0)
TEXTS = {
    "dna": "".join(DRAWN.choices("ACGT", k=5000)),
    "base64": base64.b64encode(DRAWN.randbytes(5000)).decode(),
    "digits": "".join(DRAWN.choices("0123456789", k=5000)),
    "signs": "".join(DRAWN.choices("_-=+<", k=5000)),
    "spaces": "a" + " " * 3000 + "\n" * 2000 + "b",
    "chinese": "".join(chr(0x4E00 + DRAWN.randrange(300)) for _ in range(5000)),
    "thai": "".join(DRAWN.choices("กขคงจ\u0e34\u0e35", k=5000)),
    "between": f"two words {'x' * 1000} and {'y' * LONGEST} and more",
}
WORDS = {
    "bpe": lambda part: pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(part),
    "wordpiece": lambda part: pre_tokenizers.BertPreTokenizer().pre_tokenize_str(
        normalizers.BertNormalizer().normalize_str(part)
    ),
}


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("name", TEXTS)
def test_no_word_that_is_learned_from_is_long(name, kind):
    parts = list(cut_long_words([TEXTS[name]], kind))
    assert "".join(parts) == TEXTS[name]
    lengths = [stop - start for part in parts for _, (start, stop) in WORDS[kind](part)]
    assert max(lengths) <= LONGEST + 1  # a space before it belongs to GPT-2's words


@pytest.mark.parametrize("kind", WORDS)
def test_other_text_comes_as_it_was(kind):
    pieces = ["def word(x):\n    return x ** 2  # " + "-" * 70 + "\n", "", f"{'z' * LONGEST} {'1' * LONGEST}"]
    assert list(cut_long_words(pieces, kind)) == pieces


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_learned_is_the_same_each_time_and_gives_the_text_back(tmp_path, name):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXTS[name].encode())
    text = Text([(path, 0, path.stat().st_size)])
    first, second = (train_tokenizer("bpe", 400, text) for _ in range(2))
    assert first.to_str() == second.to_str()
    ids = encode(first, TEXTS[name]).tolist()
    assert first.decode(ids, skip_special_tokens=False) == TEXTS[name]
    assert len(ids) < len(TEXTS[name].encode())
