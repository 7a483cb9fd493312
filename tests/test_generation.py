"""Generation: the same with and without the cache, and drawn as asked."""

import numpy as np
import pytest

from minitransformer.errors import InputError
from minitransformer.generation import generate, token_probabilities
from minitransformer.models import GPT, GPTConfig

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


def test_the_seed_decides(model):
    first, again, other = (list(generate(model, [0], 20, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_token_probabilities():
    logits = np.log(np.array([0.5, 0.1, 0.3, 0.1]))
    np.testing.assert_allclose(token_probabilities(logits), [0.5, 0.1, 0.3, 0.1])
    np.testing.assert_allclose(
        token_probabilities(logits, temperature=0.5), [25 / 36, 1 / 36, 9 / 36, 1 / 36]
    )
    np.testing.assert_allclose(token_probabilities(logits, top_k=2), [0.625, 0, 0.375, 0])
    np.testing.assert_allclose(token_probabilities(logits, top_k=9), [0.5, 0.1, 0.3, 0.1])
    np.testing.assert_allclose(token_probabilities(logits, top_p=0.6), [0.625, 0, 0.375, 0])
    np.testing.assert_allclose(token_probabilities(logits, top_p=1e-9), [1, 0, 0, 0])
    np.testing.assert_allclose(token_probabilities(logits, temperature=0), [1, 0, 0, 0])
    assert token_probabilities(np.array([1e4, -1e4, 0]), temperature=1e-3).tolist() == [1, 0, 0]


def test_the_draw_has_these_probabilities(model):
    logits, _ = model({"ids": np.array([[4]])})
    expected = token_probabilities(logits[0, -1], temperature=0.7, top_k=5)
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
        ({"ids": []}, "the prompt is empty"),
    ],
)
def test_impossible_settings(model, settings, message):
    arguments = {"ids": [1], "max_new_tokens": 3} | settings
    with pytest.raises(InputError, match=message):
        list(generate(model, **arguments))
