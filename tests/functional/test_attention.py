"""Attention: what must hold whatever the numbers are, and masks against their definition read aloud."""

import math

import numpy as np
import pytest
from common.masks import check_visible, masks, naive_visible
from hypothesis import given
from hypothesis import strategies as st

from minitransformer.functional import (
    Mask,
    attention,
    attention_backward,
    attention_weights,
    causal_mask,
    full_mask,
    visible,
)


def naive_attention(q, k, v, mask):
    """Return the output, a number at a time."""
    batch, queries, query_heads, width = q.shape
    seen = naive_visible(mask, batch, queries, k.shape[1])
    y = np.zeros_like(q)
    for b, i, h in np.ndindex(batch, queries, query_heads):
        g = h // (query_heads // k.shape[2])
        keys = np.flatnonzero(seen[b, i])
        scores = [math.fsum(q[b, i, h] * k[b, j, g]) / math.sqrt(width) for j in keys]
        exponentials = [math.exp(score - max(scores)) for score in scores]
        for j, exponential in zip(keys, exponentials, strict=True):
            y[b, i, h] += exponential / math.fsum(exponentials) * v[b, j, g]
    return y


LENGTHS = st.integers(1, 6)


@st.composite
def problems(draw):
    """A mask, and random q, k and v that fit it."""
    batch, queries, keys, groups, per_group, width = (draw(st.integers(1, n)) for n in (3, 6, 6, 2, 3, 4))
    mask = draw(masks(batch, queries, keys))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    q = random.normal(size=(batch, queries, groups * per_group, width))
    k, v = random.normal(size=(2, batch, keys, groups, width))
    return q, k, v, mask


def gradients(q, k, v, dy, **settings):
    """Return the output and dq, dk, dv."""
    y, saved = attention(q, k, v, **settings)
    return y, *attention_backward(dy, saved)


def upstream(y):
    return np.random.default_rng(9).normal(size=y.shape)


# --- masks


@given(st.data(), st.integers(1, 3), LENGTHS, LENGTHS)
def test_three_integers_mean_what_they_say(data, batch, queries, keys):
    check_visible(visible, data.draw(masks(batch, queries, keys)), batch, queries, keys)


def test_named_masks():
    np.testing.assert_array_equal(visible(np, causal_mask(4), 4, 4)[0], np.tril(np.ones((4, 4), bool)))
    assert visible(np, full_mask(4), 3, 4) is None
    np.testing.assert_array_equal(visible(np, full_mask(np.array([4, 1])), 1, 4)[:, 0].sum(axis=-1), [4, 1])


def test_visible_positions_in_unilm():
    # [SOS] t1 t2 [EOS] t3 t4 t5 [EOS]: the first four are the source (arXiv 1905.03197, figure 1)
    seen = visible(np, Mask(8, 4, 0), 8, 8)[0]
    first = np.array([4, 4, 4, 4, 5, 6, 7, 8])  # t1 and t2 see the first 4, t4 the first 6
    np.testing.assert_array_equal(seen, np.arange(8) < first[:, None])


# --- values


@given(problems())
def test_attention_is_its_definition(problem):
    q, k, v, mask = problem
    np.testing.assert_allclose(attention(q, k, v, mask=mask)[0], naive_attention(q, k, v, mask), atol=1e-13)


@given(problems())
def test_weights_are_those_that_attention_uses(problem):
    q, k, v, mask = problem
    weights = attention_weights(q, k, mask=mask)
    seen = naive_visible(mask, len(q), q.shape[1], k.shape[1])
    assert weights.shape == (len(q), q.shape[2], *seen.shape[1:])
    np.testing.assert_array_equal(weights > 0, np.broadcast_to(seen[:, None], weights.shape))
    sums = np.broadcast_to(seen.any(axis=-1)[:, None], weights.shape[:3])
    np.testing.assert_allclose(weights.sum(axis=-1), sums, rtol=1e-14)
    values = np.repeat(v, q.shape[2] // v.shape[2], axis=2)
    y, _ = attention(q, k, v, mask=mask)
    np.testing.assert_allclose(np.einsum("bhij,bjhk->bihk", weights, values), y, atol=1e-14)


def test_weights_take_bias_and_scale_as_attention_does():
    random = np.random.default_rng(0)
    q, k, v = random.normal(size=(3, 2, 4, 2, 3))
    settings = {"mask": causal_mask(4), "bias": random.normal(size=(2, 4, 4)), "scale": 0.7}
    settings["bias"][1, 2, :2] = -1e30
    weights = attention_weights(q, k, **settings)
    assert (weights[:, 1, 2, :2] == 0).all()
    y, _ = attention(q, k, v, **settings)
    np.testing.assert_allclose(np.einsum("bhij,bjhk->bihk", weights, v), y, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_scores_of_ten_thousand(size, dtype):
    # key 2 scores `size`, the others 0; all numbers are exact, so the weights are exactly 0, 1 or 1/2
    q = np.ones((1, 3, 1, 4), dtype)
    k, v = np.zeros_like(q), np.arange(12, dtype=dtype).reshape(q.shape)
    k[0, 2] = size / 4
    y, dq, dk, dv = gradients(q, k, v, upstream(q).astype(dtype), mask=full_mask(3), scale=1.0)
    expected = v[0, 2, 0] if size > 0 else (v[0, 0, 0] + v[0, 1, 0]) / 2
    np.testing.assert_array_equal(y, np.broadcast_to(expected, y.shape))
    for gradient in (dq, dk, dv):
        assert np.isfinite(gradient).all()
    if size > 0:  # one weight is 1: nothing but the value it picks can move the output
        assert not dq.any() and not dk.any()
        np.testing.assert_array_equal(dv[0, :2], 0)


# --- what cannot be seen


@given(problems())
def test_a_query_that_sees_nothing_gives_zero(problem):
    q, k, v, mask = problem
    blind = ~naive_visible(mask, len(q), q.shape[1], k.shape[1]).any(axis=-1)
    unseen = ~naive_visible(mask, len(q), q.shape[1], k.shape[1]).any(axis=1)
    y, dq, dk, dv = gradients(q, k, v, upstream(q), mask=mask)
    assert not y[blind].any() and not dq[blind].any()
    assert not dk[unseen].any() and not dv[unseen].any()
    assert all(np.isfinite(array).all() for array in (y, dq, dk, dv))


@given(problems(), st.sampled_from([0.0, -7.0, 1e100]))
def test_what_lies_beyond_kv_len_changes_nothing(problem, garbage):
    q, k, v, mask = problem
    padding = np.arange(k.shape[1]) >= np.broadcast_to(mask.kv_len, len(k))[:, None]
    with_garbage = [array.copy() for array in (k, v)]
    for array in with_garbage:
        array[padding] = garbage
    dy = upstream(q)
    for one, other in zip(
        gradients(q, k, v, dy, mask=mask), gradients(q, *with_garbage, dy, mask=mask), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@given(problems(), st.integers(1, 3))
def test_more_padding_changes_nothing(problem, more):
    q, k, v, mask = problem
    mask = mask._replace(kv_len=np.minimum(mask.kv_len, k.shape[1]))
    longer = [np.concatenate((array, np.ones_like(array[:, :1]).repeat(more, 1)), axis=1) for array in (k, v)]
    y, dq, dk, dv = gradients(q, k, v, upstream(q), mask=mask)
    y_longer, dq_longer, dk_longer, dv_longer = gradients(q, *longer, upstream(q), mask=mask)
    np.testing.assert_allclose(y_longer, y, atol=1e-13)
    np.testing.assert_allclose(dq_longer, dq, atol=1e-13)
    for one, other in ((dk, dk_longer), (dv, dv_longer)):
        np.testing.assert_allclose(other[:, : k.shape[1]], one, atol=1e-13)
        assert not other[:, k.shape[1] :].any()


@given(problems(), st.integers(0, 5))
def test_causal_attention_never_looks_ahead(problem, start):
    q, k, v, _ = problem
    length = min(q.shape[1], k.shape[1])
    q, k, v = q[:, :length], k[:, :length], v[:, :length]
    changed = [array.copy() for array in (q, k, v)]
    for array in changed:
        array[:, start:] += 1.0
    before, _ = attention(q, k, v, mask=causal_mask(length))
    after, _ = attention(*changed, mask=causal_mask(length))
    np.testing.assert_array_equal(before[:, :start], after[:, :start])


@given(problems(), st.integers(0, 5))
def test_later_queries_alone_with_an_offset(problem, start):
    q, k, v, mask = problem
    start = min(start, q.shape[1] - 1)
    whole, _ = attention(q, k, v, mask=mask)
    rest, _ = attention(q[:, start:], k, v, mask=mask._replace(offset=mask.offset + start))
    np.testing.assert_allclose(rest, whole[:, start:], atol=1e-13)


# --- symmetries


@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter_when_all_are_seen(problem, random):
    q, k, v, _ = problem
    order = random.sample(range(k.shape[1]), k.shape[1])
    mask, dy = full_mask(k.shape[1]), upstream(q)
    y, dq, dk, dv = gradients(q, k, v, dy, mask=mask)
    shuffled = gradients(q, k[:, order], v[:, order], dy, mask=mask)
    for one, other in zip((y, dq, dk[:, order], dv[:, order]), shuffled, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-13)


@given(problems(), st.randoms(use_true_random=False))
def test_queries_rows_and_heads_are_each_for_themselves(problem, random):
    q, k, v, mask = problem
    queries, rows, groups = (random.sample(range(n), n) for n in (q.shape[1], len(q), k.shape[2]))
    whole = full_mask(k.shape[1])
    y, _ = attention(q, k, v, mask=whole)
    np.testing.assert_allclose(attention(q[:, queries], k, v, mask=whole)[0], y[:, queries], atol=1e-13)

    y, _ = attention(q, k, v, mask=mask)
    of_rows = Mask(*(np.broadcast_to(part, len(q))[rows] for part in mask))
    np.testing.assert_allclose(attention(q[rows], k[rows], v[rows], mask=of_rows)[0], y[rows], atol=1e-13)

    heads = np.arange(q.shape[2]).reshape(k.shape[2], -1)[groups].reshape(-1)
    of_groups, _ = attention(q[:, :, heads], k[:, :, groups], v[:, :, groups], mask=mask)
    np.testing.assert_allclose(of_groups, y[:, :, heads], atol=1e-13)


@given(problems())
def test_a_shared_key_head_is_a_repeated_one(problem):
    q, k, v, mask = problem
    per_group = q.shape[2] // k.shape[2]
    dy = upstream(q)
    y, dq, dk, dv = gradients(q, k, v, dy, mask=mask)
    repeated = gradients(q, k.repeat(per_group, 2), v.repeat(per_group, 2), dy, mask=mask)
    np.testing.assert_allclose(repeated[0], y, atol=1e-13)
    np.testing.assert_allclose(repeated[1], dq, atol=1e-13)
    for one, other in ((dk, repeated[2]), (dv, repeated[3])):
        summed = other.reshape(*one.shape[:3], per_group, -1).sum(axis=3)
        np.testing.assert_allclose(summed, one, atol=1e-12)
