"""Philox 4×32-10: published vectors, a second implementation in Python integers, and dropout's masks."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitransformer.functional import (
    Key,
    attention,
    causal_mask,
    dropout,
    keep_mask,
    random_words,
    split_key,
)
from minitransformer.functional.philox import philox

ALL_BITS = 0xFFFFFFFF

# Random123's own known answers (kat_vectors, philox4x32 10): counter, key, output
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL_BITS,) * 4, (ALL_BITS,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_in_integers(counter, key):
    """Return the four output words, as section 4.2 of the paper says it."""
    left0, right0, left1, right1 = counter[1], counter[0], counter[3], counter[2]
    for number in range(10):
        round_key = [
            (word + number * weyl) & ALL_BITS
            for word, weyl in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)
        ]
        high0, low0 = divmod(right0 * 0xD2511F53, 2**32)
        high1, low1 = divmod(right1 * 0xCD9E8D57, 2**32)
        right0, left0, right1, left1 = high1 ^ left0 ^ round_key[0], low1, high0 ^ left1 ^ round_key[1], low0
    return right0, left0, right1, left1


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(counter, key, words):
    assert philox_in_integers(counter, key) == words
    arrays = philox([np.array([word], "uint32") for word in counter], key)
    assert tuple(int(word[0]) for word in arrays) == words
    assert all(word.dtype == np.uint32 for word in arrays)


KEYS = st.builds(Key, st.integers(0, 2**64 - 1), st.integers(0, ALL_BITS))
SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)


@given(KEYS, SHAPES, st.data())
def test_a_word_is_a_function_of_key_and_index(key, shape, data):
    words = random_words(np, key, shape)
    assert (words.shape, words.dtype) == (shape, np.uint32)
    index = tuple(data.draw(st.integers(0, length - 1)) for length in shape)
    *leading, i, j = (0, *index)
    n = 0
    for place, length in zip(leading, (1, *shape), strict=False):
        n = n * length + place
    counter = (j // 4, i, n, key.stream)
    word = philox_in_integers(counter, (key.seed & ALL_BITS, key.seed >> 32))[j % 4]
    assert words[index] == word


@given(KEYS, st.tuples(*[st.integers(1, 5)] * 4), st.tuples(*[st.integers(0, 4)] * 3))
def test_a_mask_does_not_depend_on_what_lies_around(key, shape, more):
    batch, heads, queries, keys = shape
    larger = keep_mask(np, key, (batch + more[0], heads, queries + more[1], keys + more[2]), 0.5)
    np.testing.assert_array_equal(keep_mask(np, key, shape, 0.5), larger[:batch, :, :queries, :keys])


def test_attention_drops_what_the_mask_of_its_index_says():
    key, rate, shape = Key(5, 2), 0.5, (2, 3, 4, 4)
    q = np.zeros((2, 4, 3, 4))  # all that is visible weighs the same
    v = np.broadcast_to(np.eye(4)[:, None], q.shape)  # the output shows the weights
    y, _ = attention(q, q, v, mask=causal_mask(4), dropout=rate, key=key)
    weights = np.tril(np.ones((4, 4))) / np.arange(1, 5)[:, None]
    expected = weights * keep_mask(np, key, shape, rate) / (1 - rate)
    np.testing.assert_allclose(y, expected.transpose(0, 2, 1, 3), rtol=1e-15)


def test_dropout_applies_the_mask_of_its_key():
    x = np.random.default_rng(0).normal(size=(3, 50))
    for key in (Key(1), Key(1, 1), Key(2)):
        y, _ = dropout(x, rate=0.25, key=key)
        np.testing.assert_allclose(y, x * keep_mask(np, key, x.shape, 0.25) / 0.75, rtol=1e-15)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_how_many_are_kept(rate):
    shape = 8, 64, 256
    kept = keep_mask(np, Key(11, 4), shape, rate)
    deviation = math.sqrt(rate * (1 - rate) / kept.size)
    assert abs(kept.mean() - (1 - rate)) <= 4 * deviation
    for axis in range(3):  # no row, column or lane is preferred
        others = kept.size / shape[axis]
        means = kept.mean(axis=tuple({0, 1, 2} - {axis}))
        assert np.abs(means - (1 - rate)).max() <= 5 * math.sqrt(rate * (1 - rate) / others)


def test_dropout_keeps_the_mean():
    y, _ = dropout(np.ones((64, 1024)), rate=0.3, key=Key(3))
    assert abs(y.mean() - 1) <= 4 * math.sqrt(0.3 / 0.7 / y.size)
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-15)


def test_bits_are_even():
    words = random_words(np, Key(0), (64, 1024))
    for bit in range(32):
        share = (words >> np.uint32(bit) & 1).mean()
        assert abs(share - 0.5) <= 4 * 0.5 / math.sqrt(words.size)


def test_keys_of_a_deep_model_are_all_different():
    key = Key(2**63 + 1)
    embedding, *blocks = split_key(key, 97)
    parts = [part for block in blocks for part in split_key(block, 6)]
    keys = [key, embedding, *blocks, *parts]
    assert {part.seed for part in keys} == {key.seed}
    assert all(0 <= part.stream <= ALL_BITS for part in keys)
    assert len(set(keys)) == len(keys)


def test_masks_of_different_keys_have_nothing_in_common():
    size = 4096
    keys = [Key(1), *split_key(Key(1), 3), Key(2), Key(1 + 2**32)]
    masks = np.array([keep_mask(np, key, (16, 256), 0.5).reshape(-1) for key in keys]) - 0.5
    correlations = 4 * masks @ masks.T / size
    assert np.abs(correlations - np.eye(len(keys))).max() <= 4.5 / math.sqrt(size)


def test_evaluation_splits_into_evaluation():
    assert split_key(None, 3) == (None, None, None)
