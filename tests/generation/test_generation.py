"""Generation: the same with and without the cache, and drawn as asked."""

import numpy as np
import pytest

from minitransformer import reference
from minitransformer.data import character_tokenizer
from minitransformer.errors import InputError
from minitransformer.generation import sampling
from minitransformer.generation.sampling import compute_probabilities, generate, prepare_decoding
from minitransformer.models import GPT, GPTConfig
from minitransformer.models.gpt import DecodingGPT

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model():
    model = GPT(GPTConfig(11, 8, 2, 2, 8)).build(seed=2, dtype="float64")
    model.flat.values[...] += RANDOM.normal(0, 0.5, model.flat.values.shape)
    return model


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_cached_tokens_equal_uncached(model, temperature):
    """Past the context length too, where the older half is forgotten."""
    settings = {"temperature": temperature, "seed": 3}
    cached = list(generate(model, [1, 2, 3], 40, **settings))
    assert cached == list(generate(model, [1, 2, 3], 40, use_cache=False, **settings))
    assert len(set(cached)) > 1


def test_greedy_is_the_likeliest_token_each_time(model):
    ids = [1, 2]
    for token in generate(model, [1, 2], 6, temperature=0):
        logits, _ = model({"ids": np.array([ids])})
        assert token == int(logits[0, -1].argmax())
        ids.append(token)


def test_a_prompt_longer_than_the_context_is_cut_on_the_left(model):
    prompt = RANDOM.integers(0, 11, 20).tolist()
    assert list(generate(model, prompt, 5, seed=1)) == list(generate(model, prompt[-8:], 5, seed=1))


def test_a_model_is_packed_where_that_is_worth_its_time(monkeypatch):
    model = GPT(GPTConfig(11, 8, 2, 2, 8)).build()
    assert prepare_decoding(model) is model
    assert isinstance(prepare_decoding(model, "int8"), DecodingGPT)
    monkeypatch.setattr(sampling, "WORTH_PACKING", 100)
    assert isinstance(prepare_decoding(model), DecodingGPT)
    with reference():
        assert prepare_decoding(model) is model


def test_the_seed_decides(model):
    first, again, other = (list(generate(model, [0], 20, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_token_probabilities():
    logits = np.log(np.array([0.5, 0.1, 0.3, 0.1]))
    np.testing.assert_allclose(compute_probabilities(logits), [0.5, 0.1, 0.3, 0.1])
    np.testing.assert_allclose(
        compute_probabilities(logits, temperature=0.5), [25 / 36, 1 / 36, 9 / 36, 1 / 36]
    )
    np.testing.assert_allclose(compute_probabilities(logits, top_k=2), [0.625, 0, 0.375, 0])
    np.testing.assert_allclose(compute_probabilities(logits, top_k=9), [0.5, 0.1, 0.3, 0.1])
    np.testing.assert_allclose(compute_probabilities(logits, top_p=0.6), [0.625, 0, 0.375, 0])
    np.testing.assert_allclose(compute_probabilities(logits, top_p=1e-9), [1, 0, 0, 0])
    np.testing.assert_allclose(compute_probabilities(logits, temperature=0), [1, 0, 0, 0])
    assert compute_probabilities(np.array([1e4, -1e4, 0]), temperature=1e-3).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("probabilities", "top_p", "kept"),
    [
        ([0.5, 0.25, 0.25], 0.5, [1, 0, 0]),
        ([0.5, 0.25, 0.25], 0.75, [2 / 3, 1 / 3, 0]),
        ([0.25, 0.5, 0.25], 0.75, [1 / 3, 2 / 3, 0]),
        ([0.25, 0.25, 0.25, 0.25], 0.25, [1, 0, 0, 0]),
        ([0.25, 0.25, 0.25, 0.25], 0.5, [0.5, 0.5, 0, 0]),
        ([0.25, 0.25, 0.25, 0.25], 0.5 + 1e-9, [1 / 3, 1 / 3, 1 / 3, 0]),
        ([0.25, 0.25, 0.25, 0.25], 1.0, [0.25, 0.25, 0.25, 0.25]),
        ([0.1] * 10, 0.8, [1 / 8] * 8 + [0, 0]),  # 0.1 added eight times is less than 0.8
        ([0.1] * 10, 0.3, [1 / 3] * 3 + [0] * 7),  # and three times more than 0.3
        ([1 - 2**-45, 2**-45], 1, [1 - 2**-45, 2**-45]),
    ],
)
def test_top_p_that_is_reached_exactly_takes_no_further_token(probabilities, top_p, kept):
    logits = np.log(np.array(probabilities))
    np.testing.assert_allclose(compute_probabilities(logits, top_p=top_p), kept, rtol=1e-12)


def sorted_probabilities(logits, top_k, top_p):
    """Return what the definitions of top-k and top-p say, by sorting everything."""
    probabilities = np.exp(logits - logits.max())
    order = np.argsort(-logits, kind="stable")
    probabilities[order[top_k:]] = 0
    probabilities /= probabilities.sum()
    if top_p == 1:
        return probabilities
    before = np.concatenate(([0], np.cumsum(probabilities[order])[:-1]))
    probabilities[order[np.round(before, 12) >= np.round(top_p, 12)]] = 0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize("top_k", [1, 2, 30, 999, 1000, 5000])
@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.95, 0.999999, 1.0])
@pytest.mark.parametrize("spread", [0, 0.1, 3, 30])
def test_the_likeliest_are_found_without_sorting_all(top_k, top_p, spread):
    logits = np.round(np.random.default_rng(2).normal(0, 1, 1000), 1) * spread  # many are equal
    found = compute_probabilities(logits, top_k=top_k, top_p=top_p)
    expected = sorted_probabilities(logits, top_k, top_p)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_draw_has_these_probabilities(model):
    logits, _ = model({"ids": np.array([[4]])})
    expected = compute_probabilities(logits[0, -1], temperature=0.7, top_k=5)
    drawn = [next(generate(model, [4], 1, temperature=0.7, top_k=5, seed=seed)) for seed in range(600)]
    counts = np.bincount(drawn, minlength=11)
    deviation = np.sqrt(600 * expected * (1 - expected))
    assert (np.abs(counts - 600 * expected) <= 4 * deviation).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0; expected at least 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"max_new_tokens": 3.0}, "max_new_tokens is 3.0; expected an integer"),
        ({"seed": "7"}, "seed is '7'; expected an integer"),
        ({"seed": True}, "seed is True; expected an integer"),
        ({"temperature": "hot"}, "temperature is 'hot'; expected a number"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": np.array([])}, "the prompt is empty"),
        ({"prompt": [1, 11]}, "the prompt has the id 11; the model knows 0 to 10"),
        ({"prompt": np.array([-1])}, "the prompt has the id -1; the model knows 0 to 10"),
        ({"prompt": [1, 2.0]}, "the prompt has 2.0 where a token id is expected, an integer"),
        ({"prompt": np.array([1.0])}, "the prompt has 1.0 where a token id"),
        ({"prompt": [1, True]}, "the prompt has True where a token id"),
        ({"prompt": [[1, 2]]}, "expected one row of ids: one text is continued"),
        ({"prompt": np.array([[1, 2], [3, 4]])}, "the prompt has several rows; expected one row"),
        ({"prompt": 3}, "the prompt is a int; expected text or a row of token ids"),
        ({"prompt": {"ids": [1]}}, "the prompt is a dict; expected text or a row"),
        ({"prompt": None}, "the prompt is a NoneType; expected text or a row"),
        ({"prompt": "ab"}, r"needs the model's tokenizer: give tokenizer=load_tokenizer\(DIR\)"),
        ({"prompt": "ab", "tokenizer": "runs/python"}, "the tokenizer is a str; expected one as load_tok"),
        ({"tokenizer": character_tokenizer("abcdefghijklmnop"), "prompt": "ap"}, "the prompt has the id 15"),
        ({"stop": "a"}, r"stop is the text 'a', which needs tokenizer=load_tokenizer\(DIR\)"),
        ({"stop": ""}, "stop is ''; expected text, or a token id of 0 to 10"),
        ({"stop": 11}, "stop is 11; expected text, or a token id of 0 to 10"),
        ({"stop": [3, True]}, "stop is True; expected text, or a token id"),
        ({"vocabulary_size": 12}, "vocabulary_size is 12; expected 1 to 11, the model's"),
        ({"vocabulary_size": 0}, "vocabulary_size is 0; expected 1 to 11"),
    ],
)
def test_impossible_settings(model, settings, message):
    """Refused by the call itself, before any token is asked for."""
    arguments = {"prompt": [1], "max_new_tokens": 3} | settings
    with pytest.raises(InputError, match=message):
        generate(model, **arguments)


@pytest.mark.parametrize("as_ids", [tuple, np.array, lambda ids: np.array(ids, np.uint8)], ids=str)
def test_ids_may_be_any_row_of_integers(model, as_ids):
    assert list(generate(model, as_ids([1, 2, 3]), 9)) == list(generate(model, [1, 2, 3], 9))


def test_how_much_is_written_by_default(model):
    assert len(list(generate(model, [1]))) == 200


@pytest.mark.parametrize("temperature", [0, 1.0, 5.0])
def test_rows_that_are_no_token_are_never_drawn(model, temperature):
    """The model prefers what may not be drawn: the other ids keep their proportions."""
    padded = GPT(model.config).build(dtype="float64")
    padded.flat.values[...] = model.flat.values
    logits, _ = padded({"ids": np.array([[4]])})
    likeliest = int(logits[0, -1].argmax())
    drawn = set(generate(padded, [4], 300, temperature=temperature, vocabulary_size=likeliest or 1))
    assert max(drawn) < (likeliest or 1)
    letters = "abcdefg"
    ids = list(generate(padded, [4], 300, temperature=temperature, tokenizer=character_tokenizer(letters)))
    assert max(ids) < len(letters)
    assert ids == list(generate(padded, [4], 300, temperature=temperature, vocabulary_size=len(letters)))
    assert max(generate(padded, [4], 300, temperature=5.0)) > len(letters)


LETTERS = "abcdefghijk"


def test_text_is_continued_by_text(model):
    tokenizer = character_tokenizer(LETTERS)
    ids = list(generate(model, [1, 2, 3], 30, seed=4))
    pieces = list(generate(model, "bcd", 30, seed=4, tokenizer=tokenizer))
    assert len(pieces) == 30
    assert "".join(pieces) == "".join(LETTERS[index] for index in ids)
    assert list(generate(model, [1, 2, 3], 30, seed=4, tokenizer=tokenizer)) == ids
    from_nothing = "".join(generate(model, "", 30, tokenizer=tokenizer))
    assert from_nothing == "".join(LETTERS[index] for index in generate(model, [0], 30))
    with pytest.raises(InputError, match="the model never saw: 'z'"):
        generate(model, "z", tokenizer=tokenizer)


def test_tokenizers_of_transformers_will_do(model, transformers):
    tokenizer = character_tokenizer(LETTERS)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    expected = "".join(generate(model, "bcd", 30, tokenizer=tokenizer))
    assert "".join(generate(model, "bcd", 30, tokenizer=theirs)) == expected


def test_a_token_stops(model):
    ids = list(generate(model, [1], 60))
    stop = ids[20]
    expected = ids[: ids.index(stop)]
    assert list(generate(model, [1], 60, stop=stop)) == expected
    assert list(generate(model, [1], 60, stop=np.array([stop]))) == expected
    text = "".join(generate(model, "b", 60, stop=[stop], tokenizer=character_tokenizer(LETTERS)))
    assert text == "".join(LETTERS[index] for index in expected)
    rare = next(index for index in range(11) if index not in ids[:10])
    assert list(generate(model, [1], 10, stop={rare})) == ids[:10]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_text_stops_though_it_spans_tokens(model, length):
    tokenizer = character_tokenizer(LETTERS)
    written = "".join(generate(model, "b", 60, tokenizer=tokenizer))
    stop = written[30 : 30 + length]
    expected = written[: written.index(stop)]
    assert "".join(generate(model, "b", 60, stop=stop, tokenizer=tokenizer)) == expected
    assert "".join(generate(model, "b", 60, stop=["zz", stop], tokenizer=tokenizer)) == expected
    ids = generate(model, [1], 60, stop=stop, tokenizer=tokenizer)
    assert "".join(LETTERS[index] for index in ids) == expected


def test_nothing_is_computed_before_the_first_token_is_asked_for(model, monkeypatch):
    monkeypatch.setattr(GPT, "hidden", None)
    tokens = generate(model, [1], 3)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        next(tokens)
