"""Fused attention on the CPU against its definition, both against the definition in float64."""

import threading
import tracemalloc

import numpy as np
import pytest
from common.fused_attention import DEFINITION, FUSED, KEY, check, draw, some_bias, value_and_gradients
from common.masks import masks
from hypothesis import given, settings
from hypothesis import strategies as st

from minitransformer import dispatch, functional, reference
from minitransformer.functional import Key, Mask, causal_mask, full_mask
from minitransformer.functional.attention import AttentionSaved
from minitransformer.kernels.cpu import attention as fused
from minitransformer.kernels.cpu.threads import limit_threads, thread_count

WIDTHS = [16, 32, 40, 64, 80, 128, 20, 5, 1]


@st.composite
def problems(draw_from):
    """Attention of all kinds: lengths around the sizes of tiles, any mask, packed or transposed arrays."""
    length = st.one_of(st.integers(0, 9), st.sampled_from([31, 32, 33, 63, 64, 65, 100, 128, 150]))
    batch, kv_heads, group_size = (draw_from(st.integers(0, n)) for n in (3, 2, 3))
    kv_heads, group_size = kv_heads + 1, max(1, group_size)
    queries, keys = draw_from(length), draw_from(length)
    head_width = draw_from(st.sampled_from(WIDTHS))
    shape = batch, queries, keys, kv_heads * group_size, kv_heads, head_width
    arguments = {"mask": draw_from(masks(batch, queries, keys))}
    if draw_from(st.booleans()):
        arguments |= {"dropout": draw_from(st.sampled_from([0.1, 0.5])), "key": KEY}
    if draw_from(st.booleans()):
        kept = [draw_from(st.booleans()) for _ in range(4)]
        whole = batch, kv_heads * group_size, queries, keys
        bias_shape = [n if keep else 1 for n, keep in zip(whole, kept, strict=True)]
        dtype = draw_from(st.sampled_from(["float32", "float64", "float16"]))
        arguments["bias"] = bias_shape[draw_from(st.integers(0, 3)) :], dtype
    layout = draw_from(st.sampled_from(["plain", "packed", "transposed", "reversed", "wide"]))
    return draw_from(st.integers(0, 2**32)), shape, layout, arguments


def laid_out(x, layout):
    """Return an array equal to ``x`` with other strides."""
    if layout == "packed":  # a part of a packed projection, between other heads
        return np.concatenate((x * 0 + 3, x, x * 0 - 3), axis=2)[:, :, x.shape[2] : 2 * x.shape[2]]
    if layout == "transposed":
        return np.ascontiguousarray(x.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    if layout == "reversed":
        return np.ascontiguousarray(x[::-1, ::-1, ::-1])[::-1, ::-1, ::-1]
    if layout == "wide":  # every second of wider rows
        return x.repeat(2, axis=1)[:, ::2]
    return x


@settings(max_examples=400)
@given(problems())
def test_it_is_the_definition(problem):
    seed, shape, layout, arguments = problem
    q, k, v, dy = (laid_out(x, layout) for x in draw(seed, *shape))
    if "bias" in arguments:
        arguments = {**arguments, "bias": some_bias(*arguments["bias"])}
    before = [x.copy() for x in (q, k, v, dy)]
    check(q, k, v, dy, **arguments)
    for x, copy in zip((q, k, v, dy), before, strict=True):
        np.testing.assert_array_equal(x, copy)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("mask", [full_mask(257), causal_mask(257), Mask(200, 70, 3)], ids=str)
def test_several_blocks_and_workers(mask, width, monkeypatch):
    monkeypatch.setattr(fused, "WORTH_A_THREAD", 1)
    check(*draw(0, 1, 257, 257, 3, 1, width), mask=mask)


def test_queries_of_one_tile_that_see_almost_as_many_keys():
    check(*draw(0, 2, 128, 31, 2, 2, 16), mask=Mask(20, 19, -45))  # the first 64 see 19, the others 20


@pytest.mark.parametrize("factor", [60.0, -60.0])
def test_logits_of_ten_thousand(factor):
    q, k, v, dy = draw(1, 1, 70, 90, 2, 2, 64)
    q *= factor
    k *= np.abs(factor)
    assert np.abs(np.einsum("bihk,bjhk->bhij", q, k) / 8).max() > 1e4
    check(q, k, v, dy, mask=full_mask(90))


def test_logits_of_ten_thousand_under_dropout():
    # dropout's factor rounds y and so delta; where one key has all the weight, dP − delta is not exactly zero
    q, k, v, dy = draw(1, 1, 70, 90, 2, 2, 64)
    arguments = {"mask": full_mask(90), "dropout": 0.3, "key": KEY}
    exact = value_and_gradients(DEFINITION, *(x.astype(float) for x in (60 * q, 60 * k, v, dy)), **arguments)
    ours = value_and_gradients(FUSED, 60 * q, 60 * k, v, dy, **arguments)
    for best, mine in zip(exact, ours, strict=True):
        assert np.abs(mine - best).max() < 1e-6 * 60 * np.abs(k).max()


def test_rows_that_see_nothing_are_zero():
    q, k, v, dy = draw(2, 2, 40, 70, 2, 1, 16)
    k[1], v[1] = np.nan, np.nan  # beyond what may be read of row 1
    y, dq, dk, dv = value_and_gradients(FUSED, q, k, v, dy, mask=Mask(np.array([70, 0]), 0, -9))
    assert not y[0, :9].any() and y[0, 9:].all()
    assert not dq[0, :9].any() and not any(x[1].any() for x in (y, dq, dk, dv))
    assert not dk[0, 31:].any() and not dv[0, 31:].any()


@pytest.mark.parametrize("queries", [70, 1])
@pytest.mark.parametrize("key", [0, 40, 63, 64, 89])
def test_nan_reaches_whoever_sees_it(queries, key):
    q, k, v, dy = draw(1, 1, queries, 90, 2, 2, 64)
    k[0, key, 0, 3] = np.nan
    mask = Mask(90, 0, 50) if queries > 1 else full_mask(90)
    expected = value_and_gradients(DEFINITION, q, k, v, dy, mask=mask)
    found = value_and_gradients(FUSED, q, k, v, dy, mask=mask)
    for best, ours in zip(expected, found, strict=True):
        np.testing.assert_array_equal(np.isnan(ours).any(axis=(1, 3)), np.isnan(best).any(axis=(1, 3)))
    np.testing.assert_array_equal(np.isnan(found[0]), np.isnan(expected[0]))


def test_a_bias_that_hides_everything():
    q, k, v, dy = draw(3, 1, 40, 70, 2, 2, 16)
    bias = np.zeros((40, 70))
    bias[5] = -1e30
    y, dq, dk, dv = check(q, k, v, dy, mask=full_mask(70), bias=bias)
    assert not y[:, 5].any() and not dq[:, 5].any() and np.isfinite(dk).all() and np.isfinite(dv).all()


@pytest.mark.parametrize("key", [KEY, Key(2**64 - 1, 2**32 - 1), Key(0)], ids=str)
def test_dropout_drops_what_the_definition_drops(key):
    batch, heads, queries, keys = 2, 3, 37, 70
    q = np.zeros((batch, queries, heads, keys), np.float32)
    v = np.broadcast_to(np.eye(keys, dtype=np.float32)[None, :, None], (batch, keys, heads, keys))
    y, _ = fused.attention(q, np.zeros_like(v), v, mask=full_mask(keys), dropout=0.4, key=key)
    kept = functional.keep_mask(np, key, (batch, heads, queries, keys), 0.4)
    np.testing.assert_array_equal(y.transpose(0, 2, 1, 3) != 0, kept)


def parts_of_ones(layout, *arrays):
    """Return ones of the shapes of ``arrays``: views of one array, concatenated by heads."""
    whole = np.ones((*arrays[0].shape[:2], sum(x.shape[2] for x in arrays), arrays[0].shape[3]), np.float32)
    if layout == "transposed":
        whole = np.ascontiguousarray(whole.T).T
    if layout == "reversed":
        whole = whole[::-1, ::-1, ::-1]
    return np.split(whole, np.cumsum([x.shape[2] for x in arrays])[:-1], axis=2)


@pytest.mark.parametrize("layout", ["packed", "transposed", "reversed"])
@pytest.mark.parametrize("width", [16, 20, 5])
@pytest.mark.parametrize("queries", [1, 150])
def test_gradients_are_added_to_views(queries, width, layout, monkeypatch):
    monkeypatch.setattr(fused, "WORTH_A_THREAD", 1)  # several workers share a head's queries
    q, k, v, dy = draw(4, 1, queries, 150, 2, 1, width)
    between = k[:, :queries]  # a head that no gradient belongs to
    _, saved = fused.attention(q, k, v, mask=Mask(150, 70, 3))
    plain = fused.attention_backward(dy, saved)
    dq, untouched = parts_of_ones(layout, q, between)
    dk, between_keys, dv = parts_of_ones(layout, k, k, v)
    gradients = fused.attention_backward(dy, saved, add_to=(dq, dk, dv))
    for gradient, owner, alone in zip(gradients, (dq, dk, dv), plain, strict=True):
        assert gradient is owner
        np.testing.assert_allclose(owner, alone + 1, rtol=1e-6, atol=1e-6)
    assert (untouched == 1).all() and (between_keys == 1).all()


def test_gradients_are_added_where_the_kernel_cannot_write():
    q, k, v, dy = draw(5, 1, 9, 9, 2, 2, 16)
    _, saved = fused.attention(q, k, v, mask=causal_mask(9))
    plain = fused.attention_backward(dy, saved)
    owners = np.ones(q.shape), None, np.ones_like(v, np.float16)
    dq, dk, dv = fused.attention_backward(dy, saved, add_to=owners)
    assert dq is owners[0] and dv is owners[2]
    for gradient, expected in ((dq, plain[0] + 1), (dk, plain[1]), (dv, plain[2] + 1)):
        np.testing.assert_allclose(gradient, expected, rtol=2e-3)
    read_only = np.broadcast_to(np.float32(1), q.shape)
    for wrong in (read_only, np.ones(q.shape[1:], np.float32)):
        with pytest.raises(ValueError, match=r"read-only|broadcast"):
            fused.attention_backward(dy, saved, add_to=(wrong, None, None))


def test_gradients_may_share_one_array(monkeypatch):
    monkeypatch.setattr(fused, "WORTH_A_THREAD", 1)
    q, k, v, dy = draw(5, 1, 150, 150, 2, 2, 16)
    _, saved = fused.attention(q, k, v, mask=causal_mask(150))
    plain = fused.attention_backward(dy, saved)
    total = np.zeros_like(q)
    for gradient in fused.attention_backward(dy, saved, add_to=(total, total[:], total)):
        assert np.shares_memory(gradient, total)
    np.testing.assert_allclose(total, sum(plain), rtol=1e-5, atol=1e-5)


def test_gradients_need_no_memory_where_they_are_added():
    q, k, v, dy = draw(6, 1, 1024, 1024, 16, 16, 32)
    _, saved = fused.attention(q, k, v, mask=Mask(1024, 0, -960))  # little is visible, to be fast
    parts = parts_of_ones("packed", q, k, v)
    fused.attention_backward(dy, saved, add_to=parts)
    tracemalloc.start()
    fused.attention_backward(dy, saved, add_to=parts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < q.nbytes


def test_read_only_arrays_are_fine():
    arrays = draw(6, 1, 9, 9, 2, 2, 16)
    for array in arrays:
        array.flags.writeable = False
    check(*arrays, mask=causal_mask(9))


def test_float64_is_refused():
    q, k, v, _ = (x.astype(np.float64) for x in draw(7, 1, 2, 2, 1, 1, 16))
    with pytest.raises(TypeError, match="float64"):
        fused.attention(q, k, v, mask=full_mask(2))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("keys", [1, 3, 64, 100, 257])
@pytest.mark.parametrize("biased", [False, True])
def test_a_single_query(keys, width, biased, monkeypatch):
    monkeypatch.setattr(fused, "WORTH_A_THREAD", 1)
    bias = np.where(np.arange(keys) % 3, 0.5, -1e31) if biased else None
    for mask in (full_mask(keys), Mask(np.array([keys, 0]), 0, keys - 2)):
        check(*draw(keys, 2, 1, keys, 4, 2, width), mask=mask, bias=bias)


# --- threads and memory


@pytest.mark.parametrize("mask", [causal_mask(300), full_mask(300)], ids=str)
def test_any_number_of_threads_is_right_and_gives_the_same_again(mask, monkeypatch):
    monkeypatch.setattr(fused, "WORTH_A_THREAD", 1)
    arrays = draw(9, 1, 300, 300, 3, 3, 32)
    for count in range(1, thread_count() + 1):
        with limit_threads(count):
            first = check(*arrays, mask=mask, dropout=0.1, key=KEY)
            for _ in range(5):
                again = value_and_gradients(FUSED, *arrays, mask=mask, dropout=0.1, key=KEY)
                for one, other in zip(first, again, strict=True):
                    np.testing.assert_array_equal(one, other)


def test_the_work_is_split_so_that_all_workers_have_some():
    choose = fused._choose_splits
    assert (choose(3, 5, 1), choose(4, 5, 2), choose(3, 5, 2)) == (1, 1, 2)
    assert (choose(1, 5, 4), choose(1, 3, 8)) == (4, 3)


def test_python_threads_may_call_at_once(monkeypatch):
    monkeypatch.setattr(fused, "WORTH_A_THREAD", 1)
    problems = [draw(seed, 1, 130, 130, 2, 2, 32) for seed in range(4)]
    expected = [value_and_gradients(FUSED, *arrays, mask=causal_mask(130)) for arrays in problems]
    wrong = []

    def work(arrays, results):
        for _ in range(10):
            got = value_and_gradients(FUSED, *arrays, mask=causal_mask(130))
            wrong.extend(
                name for name, a, b in zip("yqkv", got, results, strict=True) if not np.array_equal(a, b)
            )

    threads = [threading.Thread(target=work, args=pair) for pair in zip(problems, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_grows_with_the_length_alone(monkeypatch):
    monkeypatch.setattr(fused, "WORTH_A_THREAD", 1)
    peaks = []
    for length in (512, 2048):
        arrays = draw(10, 1, length, length, 1, 1, 16)
        tracemalloc.start()
        value_and_gradients(FUSED, *arrays, mask=causal_mask(length))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 4.4 * peaks[0]


# --- dispatch


def saved_by_dispatch(dtype):
    q, k, v, dy = (x.astype(dtype) for x in draw(11, 1, 256, 256, 1, 1, 16))
    _, call = dispatch.attention(q, k, v, mask=causal_mask(256))
    dispatch.attention_backward(dy, call)
    return call.saved


def test_float32_runs_the_kernel_and_the_rest_the_definition():
    missed = dispatch.misses["attention"]
    assert isinstance(saved_by_dispatch(np.float32), fused.Saved)
    assert dispatch.misses["attention"] == missed
    assert isinstance(saved_by_dispatch(np.float64), AttentionSaved)
    assert dispatch.misses["attention"] == missed + 1


@pytest.mark.parametrize(("queries", "much", "little"), [(1, 600, 580), (64, 32, 30)])
def test_the_kernel_runs_where_there_is_much_to_do(queries, much, little):
    q, k, _, _ = draw(11, 1, queries, much, 8, 8, 64)
    assert isinstance(dispatch.attention(q, k, k, mask=full_mask(much))[1].saved, fused.Saved)
    k = k[:, :little]
    assert isinstance(dispatch.attention(q, k, k, mask=full_mask(little))[1].saved, AttentionSaved)


@pytest.mark.parametrize("pair", [DEFINITION, FUSED])
@pytest.mark.parametrize("shape", [(1, 10, 2, 16), (2, 9, 2, 16), (2, 10, 1, 16), (10, 2, 16), None])
def test_a_gradient_of_another_shape_is_refused(pair, shape):
    q, k, v, _ = draw(13, 2, 10, 10, 2, 2, 16)
    _, saved = pair[0](q, k, v, mask=causal_mask(10))
    dy = None if shape is None else np.ones(shape, np.float32)
    with pytest.raises(ValueError, match=r"dy has shape .*; expected that of y, \(2, 10, 2, 16\)"):
        pair[1](dy, saved)


@pytest.mark.parametrize("attend", [functional.attention, fused.attention])
def test_what_is_no_mask_or_has_no_width_is_refused(attend):
    q, k, v, _ = draw(13, 2, 10, 10, 2, 2, 16)
    for mask in (None, np.ones((10, 10), bool), (10, 0, 0)):
        with pytest.raises(TypeError, match=r"expected a Mask, as causal_mask\(T\)"):
            attend(q, k, v, mask=mask)
    with pytest.raises(ValueError, match="heads of width 0"):
        attend(q[..., :0], k[..., :0], v[..., :0], mask=causal_mask(10))


def test_reference_switches_kernels_off():
    missed = dispatch.misses["attention"]
    with reference():
        assert not isinstance(saved_by_dispatch(np.float32), fused.Saved)
    assert dispatch.misses["attention"] == missed
    assert isinstance(saved_by_dispatch(np.float32), fused.Saved)


def test_forward_decides_who_runs_backward():
    q, k, v, dy = draw(12, 1, 256, 256, 1, 1, 16)
    _, call = dispatch.attention(q, k, v, mask=causal_mask(256))
    with reference():
        gradients = dispatch.attention_backward(dy, call)
    for one, other in zip(gradients, fused.attention_backward(dy, call.saved), strict=True):
        np.testing.assert_array_equal(one, other)
