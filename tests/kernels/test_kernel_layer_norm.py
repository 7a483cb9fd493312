"""Layer normalisation on the CPU against its definition, both against the definition in float64."""

import numpy as np
import pytest
from common.fused_layer_norm import ADD_NORM, DEFINED_ADD_NORM, DEFINED_NORM, NORM, check, draw
from common.kernels_of_rows import LAYOUTS, run_pair
from common.operations import check_refusal_of_dy
from hypothesis import given
from hypothesis import strategies as st

from minitransformer import dispatch, functional
from minitransformer.kernels.cpu import layer_norm as kernel
from minitransformer.kernels.cpu import rows
from minitransformer.kernels.cpu.threads import limit_threads, thread_count


@st.composite
def problems(draw_from):
    """Rows of any number and width, one or more axes, near or far from 0."""
    leading = draw_from(st.lists(st.integers(0, 9), max_size=2) | st.sampled_from([[100], [3, 31]]))
    width = draw_from(st.integers(1, 40) | st.sampled_from([64, 100, 127, 128]))
    mean = draw_from(st.sampled_from([0.0, 100.0]))
    shape = (*leading, width)
    arrays = draw(draw_from(st.integers(0, 2**32)), shape, draw_from(LAYOUTS), mean, draw_from(st.booleans()))
    return arrays, draw_from(st.sampled_from([1e-5, 0.5]))


@given(problems())
def test_it_is_the_definition(problem):
    arrays, eps = problem
    check(*arrays, eps=eps)


@pytest.mark.parametrize("shape", [(600, 65), (2, 70, 1000), (4000, 8)])
def test_several_tasks_and_workers(shape, monkeypatch):
    monkeypatch.setattr(rows, "WORTH_A_THREAD", 1)
    check(*draw(0, shape))


def test_rows_of_equal_entries_are_shifted_only():
    x, _, gain, bias, dy = draw(1, (3, 50))
    x[:] = 7.0
    y, dx, dgain, _ = run_pair(NORM, (x, gain, bias), dy, {})
    np.testing.assert_array_equal(y, np.broadcast_to(bias, y.shape))
    assert not dgain.any() and np.isfinite(dx).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 17, 18])
def test_what_is_no_number_spoils_its_row_alone(wrong, place):
    x, residual, gain, bias, dy = draw(2, (5, 19))
    x[3, place] = wrong
    dy[1, place] = wrong
    for pair, definition, terms in (
        (NORM, DEFINED_NORM, (x,)),
        (ADD_NORM, DEFINED_ADD_NORM, (x, residual)),
    ):
        ours = run_pair(pair, (*terms, gain, bias), dy, {})
        with np.errstate(all="ignore"):
            theirs = run_pair(definition, (*terms, gain, bias), dy, {})
        for mine, expected in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(np.isnan(mine), np.isnan(expected))
            np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_added():
    x, residual, gain, bias, dy = draw(3, (6, 21))
    plain = run_pair(ADD_NORM, (x, residual, gain, bias), dy, {})[1:]
    owners = tuple(np.ones_like(gradient) for gradient in plain)
    added = run_pair(ADD_NORM, (x, residual, gain, bias), dy, {}, owners)[1:]
    for gradient, owner, alone in zip(added, owners, plain, strict=True):
        assert gradient is owner
        np.testing.assert_array_equal(owner, alone + 1)


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr(rows, "WORTH_A_THREAD", 1)
    x, _, gain, bias, dy = draw(4, (2000, 33))
    first = run_pair(NORM, (x, gain, bias), dy, {})
    for count in range(1, thread_count() + 1):
        with limit_threads(count):
            for one, other in zip(first, run_pair(NORM, (x, gain, bias), dy, {}), strict=True):
                np.testing.assert_array_equal(one, other)


def test_bad_arrays_are_refused_in_the_words_of_the_definition():
    x, residual, gain, bias, dy = draw(5, (4, 9))
    for forward in (kernel.layer_norm, functional.layer_norm):
        with pytest.raises(ValueError, match=r"layer_norm: x has shape \(4, 9\); expected gain and bias of"):
            forward(x, gain[1:], bias)
    for forward in (kernel.add_layer_norm, functional.add_layer_norm):
        with pytest.raises(ValueError, match=r"add_layer_norm: x has shape \(4, 9\) but residual \(3, 9\)"):
            forward(x, residual[1:], gain, bias)
    for pair in (NORM, DEFINED_NORM):
        check_refusal_of_dy(pair, (x, gain, bias), dy, {})
    for pair in (ADD_NORM, DEFINED_ADD_NORM):
        check_refusal_of_dy(pair, (x, residual, gain, bias), dy, {})
    with pytest.raises(TypeError, match="float64"):
        kernel.layer_norm(*(array.astype(np.float64) for array in (x, gain, bias)))


def test_the_kernel_runs_where_there_is_much_to_do():
    for rows_of_x, runs in ((256, True), (255, False)):
        x, residual, gain, bias, dy = draw(6, (rows_of_x, 128))
        for dtype in (np.float32, np.float64):
            arrays = [array.astype(dtype) for array in (x, residual, gain, bias)]
            _, call = dispatch.layer_norm(arrays[0], *arrays[2:])
            assert isinstance(call.saved, kernel.Saved) == (runs and dtype == np.float32)
            dispatch.layer_norm_backward(dy.astype(dtype), call)
            _, call = dispatch.add_layer_norm(*arrays)
            assert isinstance(call.saved, kernel.Saved) == (runs and dtype == np.float32)
