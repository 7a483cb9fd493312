"""The passes of an optimiser on the CPU against their definitions, both against float64."""

import numpy as np
import pytest
from common.fused_optimisation import SETTINGS, check_norm, check_update, draw
from hypothesis import given
from hypothesis import strategies as st

from minitransformer import dispatch, functional
from minitransformer.kernels.cpu import optimisation as kernel
from minitransformer.kernels.cpu import rows
from minitransformer.kernels.cpu.threads import limit_threads, thread_count


@given(st.integers(0, 2**32), st.integers(0, 70), st.integers(1, 1000), st.sampled_from([0.0, 0.3]))
def test_an_update_is_that_of_the_definition(seed, size, steps, weight_decay):
    check_update(seed, size, steps=steps, weight_decay=weight_decay)


@pytest.mark.parametrize("size", [rows.TASK - 1, rows.TASK, rows.TASK + 1, 5 * rows.TASK + 13])
def test_several_tasks_and_workers(size, monkeypatch):
    monkeypatch.setattr(rows, "WORTH_A_THREAD", 1)
    check_update(0, size)
    check_norm(0, size)


@given(st.integers(0, 2**32), st.integers(0, 70) | st.integers(1000, 3000))
def test_a_norm_is_that_of_the_definition(seed, size):
    check_norm(seed, size)


@pytest.mark.parametrize("place", [0, 1023, 1024, 40_000, 40_010])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_no_number_reaches_the_norm(place, wrong):
    _, gradients, _, _ = draw(1, 40_011)
    gradients[place] = wrong
    with np.errstate(over="ignore"):
        expected = functional.squared_norm(gradients)
    np.testing.assert_equal(kernel.squared_norm(gradients), expected)


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr(rows, "WORTH_A_THREAD", 1)
    results = []
    for count in range(1, thread_count() + 1):
        with limit_threads(count):
            buffers = draw(2, 5 * rows.TASK + 13)
            norm = kernel.squared_norm(buffers[1])
            kernel.adamw(*buffers, **SETTINGS)
            results.append([norm, *buffers])
    for result in results:
        for one, other in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_kernel_runs_where_there_is_much_to_do(monkeypatch):
    called = []
    for name in ("adamw", "squared_norm"):
        original = getattr(kernel, name)
        monkeypatch.setattr(
            kernel,
            name,
            lambda *arrays, name=name, original=original, **settings: (
                called.append(name) or original(*arrays, **settings)
            ),
        )
    for size, dtype, runs in ((2**15, "f4", True), (2**15 - 1, "f4", False), (2**15, "f8", False)):
        buffers = [buffer.astype(dtype) for buffer in draw(3, size)]
        dispatch.adamw(*buffers, **SETTINGS)
        dispatch.squared_norm(buffers[1])
        assert called == (["adamw", "squared_norm"] if runs else [])
        called.clear()
    dispatch.squared_norm(np.ones(2**17, np.float32)[::2])  # is not contiguous
    assert not called
