"""One stream of text from the prompt's ids to the end: what comes in pieces is what is decoded at once."""

import pytest
from common.tiny_runs import tiny_model, tiny_trainer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from minitransformer.data import character_tokenizer, train_tokenizer
from minitransformer.data.text import open_text
from minitransformer.data.tokenizer import encode
from minitransformer.generation.sampling import generate
from minitransformer.generation.streaming import decode_pieces, decode_prompt, stream_text, truncate_at_stops
from minitransformer.models import GPT, GPTConfig
from minitransformer.training import Samples

TEXT = "The old houses of Nîmes, unlike the newer ones, don't creak — 42 of them: « é, 漢字, 🙂 ».\n" * 3


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    text = open_text([path])
    return {
        "characters": character_tokenizer(TEXT + "\ufffd"),
        "bpe": train_tokenizer("bpe", 300, text),
        "wordpiece": train_tokenizer("wordpiece", 90, text),
        "words": words(),
    }


def words():
    """A tokenizer of somebody else's: spaces are letters, and tokens are joined without them at the front."""
    vocabulary = {token: index for index, token in enumerate(["▁the", "▁old", "house", "s", "▁", "."])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="."))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


KINDS = ["characters", "bpe", "wordpiece", "words"]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_joined_are_what_is_decoded_at_once(tokenizers, kind):
    """For any ids, whatever they mean: prompts and ends within a character or a word are among them."""
    tokenizer = tokenizers[kind]
    indices = st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=12)

    @given(indices, indices)
    def check(prompt, new):
        whole = tokenizer.decode(prompt + new, skip_special_tokens=False)
        assert "".join(stream_text(tokenizer, prompt, iter(new))) == whole
        parts = list(decode_pieces(tokenizer, prompt, iter(new)))
        assert [index for ids, _ in parts for index in ids] == new

    check()


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_what_continues_a_text_follows_it(tokenizers, kind):
    tokenizer = tokenizers[kind]
    for cut in range(len(TEXT) // 3):
        before, after = (encode(tokenizer, part).tolist() for part in (TEXT[:cut], TEXT[cut : cut + 20]))
        assert "".join(text for _, text in decode_pieces(tokenizer, before, after)) == TEXT[cut : cut + 20]


def test_a_word_goes_on_where_the_prompt_ends(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    ids = encode(tokenizer, "the olden").tolist()
    inside = next(i for i, index in enumerate(ids) if tokenizer.id_to_token(index).startswith("##"))
    assert "".join(stream_text(tokenizer, ids[:inside], ids[inside:])) == "the olden"


def test_bytes_that_are_no_character_are_shown_at_the_end(tokenizers):
    tokenizer = tokenizers["bpe"]
    first, *others = [tokenizer.token_to_id(letter) for letter in "ðŁĻĤ"]  # the bytes of 🙂
    a = tokenizer.token_to_id("a")
    assert list(stream_text(tokenizer, [a], [first, *others, a])) == ["a", "🙂", "a"]
    assert list(stream_text(tokenizer, [a], [first, *others[:2]])) == ["a", "\ufffd"]
    assert list(stream_text(tokenizer, [a, first], others)) == ["a", "🙂"]
    assert list(stream_text(tokenizer, [a, first], [a])) == ["a", "\ufffda"]
    assert list(stream_text(tokenizer, [], [])) == []


def test_text_comes_as_soon_as_it_is_known(tokenizers):
    tokenizer = tokenizers["bpe"]

    def ids():
        yield from encode(tokenizer, "old ")
        raise TimeoutError

    stream, got = stream_text(tokenizer, [], ids()), ""
    with pytest.raises(TimeoutError):
        for piece in stream:
            got += piece
    assert got == "old "


# --- where it stops

PIECES = st.lists(st.text("ab", max_size=3), max_size=8)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@given(PIECES, STOPS)
def test_a_stop_is_found_wherever_pieces_are_cut(pieces, stops):
    whole = "".join(pieces)
    complete = (end for end in range(len(whole) + 1) if whole[:end].endswith(tuple(stops)) and stops)
    end = next(complete, None)
    longest = max((len(stop) for stop in stops if end and whole[:end].endswith(stop)), default=0)
    expected = whole if end is None else whole[: end - longest]
    got = list(truncate_at_stops(stops, (([index], piece) for index, piece in enumerate(pieces))))
    assert "".join(text for _, text in got) == expected
    ids = [index for part, _ in got for index in part]
    ends = [len("".join(pieces[: index + 1])) for index in range(len(pieces))]
    assert ids == [index for index, place in enumerate(ends) if place <= len(expected)]


def test_what_cannot_begin_a_stop_is_not_held_back():
    given_so_far = []

    def pieces():
        for piece in ["ab", "\n", "c", "\n", "\n", "d"]:
            yield [0], piece
            given_so_far.append("".join(got))

    got = []
    for _, text in truncate_at_stops(["\n\n"], pieces()):
        got.append(text)
    assert "".join(got) == "ab\nc"
    assert given_so_far == ["ab", "ab", "ab\nc", "ab\nc"]


# --- who uses it


def test_beginnings(tokenizers):
    assert decode_prompt(tokenizers["bpe"], "The OLD  ") == "The OLD  "
    assert decode_prompt(tokenizers["wordpiece"], "The OLD  hou") == "the old hou"
    assert decode_prompt(tokenizers["wordpiece"], "") == ""


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_generated_text_is_one_stream(tokenizers, kind):
    tokenizer = tokenizers[kind]
    model = GPT(GPTConfig(tokenizer.get_vocab_size(), 16, 1, 1, 8)).build(seed=1)
    for seed in range(8):
        for prompt in ("The old hou", ""):
            ids = encode(tokenizer, prompt).tolist()
            start = ids or [tokenizer.token_to_id("<|endoftext|>") or 0]
            new = list(generate(model, start, 25, seed=seed))
            text = decode_prompt(tokenizer, prompt) + "".join(
                generate(model, prompt, 25, seed=seed, tokenizer=tokenizer)
            )
            whole = tokenizer.decode(ids + new, skip_special_tokens=False)
            assert text == whole


def test_samples_of_a_training_are_one_stream(tokenizers, tmp_path):
    tokenizer = tokenizers["wordpiece"]
    written = []
    prompt = encode(tokenizer, "the old hou").tolist()
    trainer = tiny_trainer(tmp_path / "run", max_steps=0)
    trainer.model = tiny_model(vocabulary_size=tokenizer.get_vocab_size() + 4)
    for begun in (prompt, [tokenizer.token_to_id("[PAD]")]):
        Samples(tokenizer, begun, written.append, max_new_tokens=30).on_evaluate(trainer, {})
        new = list(generate(trainer.model, begun, 30, temperature=0.8, seed=0, tokenizer=tokenizer))
        shown = prompt if begun is prompt else []
        assert written[-1] == tokenizer.decode(shown + new, skip_special_tokens=False)
    assert written[0].startswith("the old hou")
