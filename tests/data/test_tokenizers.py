"""Tokenizers: any text and any bytes come back, a text may come in pieces, and training is repeatable."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from common.texts import LEARNED, SIZES, TEXTS
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

from minitransformer.data import character_tokenizer, encode, load_tokenizer, train_tokenizer
from minitransformer.data import tokenizer as tokenizer_module
from minitransformer.data.text import open_text
from minitransformer.data.tokenizer import (
    CHUNK,
    CHUNKS,
    END_OF_TEXT,
    KINDS,
    LETTERS,
    decode_bytes,
    encode_bytes,
    encode_pieces,
    is_byte_level,
    is_character_level,
    separator_id,
    start_id,
    token_byte_count,
)
from minitransformer.errors import InputError


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The text that the tokenizers of this module are trained on."""
    path = tmp_path_factory.mktemp("learned") / "text"
    path.write_bytes(LEARNED.encode())
    return open_text([path])


@pytest.fixture(scope="module")
def tokenizers(learned):
    """A tokenizer of each kind."""
    return {kind: train_tokenizer(kind, SIZES[kind], learned) for kind in KINDS}


def decode(tokenizer, ids):
    return tokenizer.decode(list(ids), skip_special_tokens=False)


def test_each_kind_learns_as_many_tokens_as_asked(tokenizers):
    sizes = {kind: tokenizer.get_vocab_size() for kind, tokenizer in tokenizers.items()}
    assert sizes == {**SIZES, "characters": len(set(LEARNED))}
    assert [is_character_level(tokenizer) for tokenizer in tokenizers.values()] == [True, False, False]
    assert [is_byte_level(tokenizer) for tokenizer in tokenizers.values()] == [False, True, False]


def test_a_character_is_a_token(tmp_path):
    text = "".join(map(chr, [*range(1, 300), 0x2028, 0x1F600])) * 2
    tokenizer = character_tokenizer([text[:7], text[7:]])
    ids = encode(tokenizer, text)
    characters = sorted(set(text))
    assert ids.tolist() == [characters.index(character) for character in text]
    assert decode(tokenizer, ids) == text
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    np.testing.assert_array_equal(encode(load_tokenizer(tmp_path), text), ids)


def test_unknown_characters_are_named():
    tokenizer = character_tokenizer("ab")
    with pytest.raises(InputError, match=r"never saw: 'z' \(U\+007A\), '€' \(U\+20AC\); it knows 2"):
        encode(tokenizer, "a€z")
    with pytest.raises(InputError, match=r"'5' \(U\+0035\) and 3 more; it knows 2 characters"):
        encode(tokenizer, "12345678")


@given(TEXTS)
def test_any_text_comes_back_from_byte_pairs(tokenizers, text):
    tokenizer = tokenizers["bpe"]
    ids = encode(tokenizer, text)
    assert decode(tokenizer, ids) == text
    assert decode_bytes(tokenizer, ids) == text.encode()
    assert ids.dtype == np.int64


@given(
    st.binary()
    | TEXTS.map(str.encode)
    | st.tuples(TEXTS, st.binary()).map(lambda two: two[0].encode() + two[1])
)
def test_any_bytes_come_back_from_byte_pairs(tokenizers, content):
    tokenizer = tokenizers["bpe"]
    ids = encode_bytes(tokenizer, content)
    assert decode_bytes(tokenizer, ids) == content
    assert all(0 <= index < tokenizer.get_vocab_size() for index in ids)


EVERY_BYTE = [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize(
    "content",
    [
        b"".join(EVERY_BYTE),
        b"".join(reversed(EVERY_BYTE)),
        b"a".join(EVERY_BYTE),
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98",
        b"a\xc3",
        b"",
    ],
    ids=range(7),
)
def test_bytes_that_are_no_text_come_back(tokenizers, content):
    ids = encode_bytes(tokenizers["bpe"], content)
    assert decode_bytes(tokenizers["bpe"], ids) == content


@given(TEXTS)
def test_bytes_of_text_have_the_tokens_of_the_text(tokenizers, text):
    ids = encode_bytes(tokenizers["bpe"], text.encode())
    np.testing.assert_array_equal(ids, encode(tokenizers["bpe"], text))


def test_a_separator_in_the_text_is_one_token(tokenizers):
    tokenizer = tokenizers["bpe"]
    ids = encode(tokenizer, f"die{END_OF_TEXT}die")
    assert ids.tolist().count(separator_id(tokenizer)) == 1
    assert decode(tokenizer, ids) == f"die{END_OF_TEXT}die"
    assert [separator_id(tokenizers[kind]) for kind in ("characters", "wordpiece")] == [None, None]


def test_what_a_text_without_a_prompt_starts_after(tokenizers):
    starts = {kind: tokenizer.id_to_token(start_id(tokenizer)) for kind, tokenizer in tokenizers.items()}
    assert starts == {"characters": "\n", "bpe": END_OF_TEXT, "wordpiece": "[PAD]"}


def at_once(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, data=st.data())
def test_a_text_in_pieces_has_the_same_tokens(tokenizers, kind, text, data):
    tokenizer = character_tokenizer(text) if kind == "characters" else tokenizers[kind]
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:stop] for start, stop in zip([0, *places], [*places, len(text)], strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "CHUNK", data.draw(st.integers(1, 8)))
        patch.setattr(tokenizer_module, "CHUNKS", 2)
        parts = list(encode_pieces(tokenizer, pieces))
    assert np.concatenate([[], *parts]).tolist() == at_once(tokenizer, text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text",
    [
        LEARNED * 200,
        re.sub(r"\s", "", LEARNED) * 300,
        "!" * CHUNK + "\x1c" + "!\x1c" * CHUNK,
        "cat" * CHUNK + "\x0b" + "dog",
        "a" + " " * 3 * CHUNK + "hear" + "\r\n" * CHUNK + "me",
    ],
    ids=["with spaces", "without spaces", "a space to Python alone", "a space to BERT no longer", "spaces"],
)
def test_a_long_text_in_pieces_has_the_same_tokens(tokenizers, kind, text):
    assert len(text) > 2 * CHUNK
    pieces = (text[start : start + 3 * CHUNK + 1] for start in range(0, len(text), 3 * CHUNK + 1))
    parts = list(encode_pieces(tokenizers[kind], pieces))
    assert len(parts) > 1 or " " not in text
    assert np.concatenate(parts).tolist() == at_once(tokenizers[kind], text)


def test_the_library_is_given_little_at_a_time(tokenizers):
    class Watched:
        """A tokenizer that notes how much it is asked to encode at once."""

        def __init__(self, tokenizer):
            self.tokenizer, self.amounts = tokenizer, []

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

        def encode_batch(self, texts, **settings):
            self.amounts.append(sum(map(len, texts)))
            return self.tokenizer.encode_batch(texts, **settings)

    for tokenizer in tokenizers.values():
        watched = Watched(tokenizer)
        encode(watched, LEARNED * 1000)
        assert sum(watched.amounts) == len(LEARNED) * 1000
        assert max(watched.amounts) <= CHUNKS * (CHUNK + 100)


TRAIN = """
import sys
from pathlib import Path
from minitransformer.data import train_tokenizer
from minitransformer.data.text import open_text
text = open_text([Path(sys.argv[1])])
for kind, size in (("bpe", 360), ("wordpiece", 140)):
    print(train_tokenizer(kind, size, text).to_str())
"""


@pytest.mark.parametrize(
    "environment",
    [
        {"TOKENIZERS_PARALLELISM": "false"},
        {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "4", "PYTHONHASHSEED": "1"},
    ],
    ids=["one thread", "four threads"],
)
def test_the_same_text_gives_the_same_tokenizer_in_every_process(tokenizers, learned, environment):
    ((path, _, _),) = learned.spans
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(path)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines() == [tokenizers[kind].to_str() for kind in ("bpe", "wordpiece")]


@pytest.mark.parametrize("kind", KINDS)
def test_training_reports_how_far_it_is(learned, kind):
    reports = []
    train_tokenizer(kind, SIZES[kind], learned, lambda done, total: reports.append((done, total)))
    done, totals = zip(*reports, strict=True)
    assert list(done) == sorted(set(done))
    assert set(totals) == {done[-1]}
    assert done[-1] % learned.byte_count == 0


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("bpe", 256, "vocabulary_size is 256; a bpe tokenizer has at least 257 tokens"),
        ("wordpiece", 20, "vocabulary_size is 20; a wordpiece tokenizer of this text has at least .* tokens"),
        ("words", 300, "tokenizer is 'words'; expected one of characters, bpe, wordpiece"),
    ],
)
def test_tokenizers_that_can_not_be_trained(learned, kind, size, message):
    with pytest.raises(InputError, match=message):
        train_tokenizer(kind, size, learned)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_the_smallest_vocabulary_is_that_of_bytes_or_letters(learned, kind):
    with pytest.raises(InputError) as refused:
        train_tokenizer(kind, 1, learned)
    least = int(re.search(r"at least (\d+)", str(refused.value))[1])
    tokenizer = train_tokenizer(kind, least, learned)
    assert tokenizer.get_vocab_size() == least
    assert max(len(re.sub("^##", "", token)) for token in tokenizer.get_vocab() if token[0] not in "<[") == 1


def test_wordpiece_splits_as_bert_was_published_to(tokenizers):
    tokenizer = type(tokenizers["wordpiece"]).from_str(tokenizers["wordpiece"].to_str())
    words = ["[UNK]", "[CLS]", "[SEP]", "want", "##want", "##ed", "wa", "un", "runn", "##ing", ","]
    tokenizer.model = models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
    assert tokenizer.encode("UNwantéd,running").tokens == ["un", "##want", "##ed", ",", "runn", "##ing"]
    assert tokenizer.encode("UNwantédX,running").tokens == ["[UNK]", ",", "runn", "##ing"]


def test_special_tokens_stand_first(tokenizers):
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert [tokenizers["wordpiece"].token_to_id(special) for special in specials] == [0, 1, 2, 3, 4]
    assert list(tokenizers["wordpiece"].get_added_tokens_decoder()) == [0, 1, 2, 3, 4]
    assert separator_id(tokenizers["bpe"]) == 0


@given(TEXTS)
def test_the_tokens_of_a_text_have_its_bytes(tokenizers, text):
    tokenizer = tokenizers["bpe"]
    counts = [token_byte_count(tokenizer, index) for index in encode(tokenizer, text)]
    assert sum(counts) == len(text.encode()) - text.count(END_OF_TEXT) * len(END_OF_TEXT)


def test_how_many_bytes_a_token_stands_for(tokenizers):
    characters, bpe, wordpiece = tokenizers.values()
    counts = [token_byte_count(characters, index) for index in encode(characters, "aï日😀")]
    assert counts == [1, 2, 3, 4]
    assert token_byte_count(bpe, separator_id(bpe)) == 0
    assert [token_byte_count(bpe, index) for index in encode(bpe, "é")] == [1, 1]
    counts = {
        word: token_byte_count(wordpiece, wordpiece.token_to_id(word)) for word in ("##ing", "a", "[UNK]")
    }
    assert counts == {"##ing": 3, "a": 1, "[UNK]": 0}


def test_the_letters_of_bytes_are_gpt_2s(transformers):
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    assert dict(enumerate(LETTERS)) == bytes_to_unicode()


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_tokenizer(tokenizers, tmp_path, transformers, kind):
    tokenizers[kind].save(str(tmp_path / "tokenizer.json"))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ids = encode(tokenizers[kind], LEARNED).tolist()
    assert theirs(LEARNED)["input_ids"] == ids
    assert theirs.decode(ids) == tokenizers[kind].decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_comes_back_from_its_folder(tokenizers, tmp_path, kind):
    tokenizers[kind].save(str(tmp_path / "tokenizer.json"))
    again = load_tokenizer(tmp_path)
    assert again.to_str() == tokenizers[kind].to_str()
    assert (is_byte_level(again), is_character_level(again)) == (kind == "bpe", kind == "characters")


@pytest.mark.parametrize("content", [b'{"version": "1.0", "model": {"type"', b"", b"[]", b"\xff", b"{}"])
def test_a_damaged_tokenizer_file(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer file"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_of_a_kind_that_the_library_does_not_know(tokenizers, tmp_path):
    written = json.loads(tokenizers["bpe"].to_str())
    written["model"]["type"] = "Telepathy"
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match="is not a tokenizer file"):
        load_tokenizer(tmp_path)


def test_a_missing_tokenizer_file(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer\.json is missing; a trained model's folder holds one"):
        load_tokenizer(tmp_path)
