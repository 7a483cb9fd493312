"""The rectifier on the CPU, which gives the numbers of its definition."""

import numpy as np
import pytest
from common.fused_relu import DEFINITION, PAIR, check, draw
from common.kernels_of_rows import LAYOUTS
from common.operations import check_refusal_of_dy
from hypothesis import given
from hypothesis import strategies as st

from minitransformer import dispatch
from minitransformer.kernels.cpu import relu as kernel
from minitransformer.kernels.cpu import rows
from minitransformer.kernels.cpu.threads import limit_threads, thread_count


@given(
    seed=st.integers(0, 2**32),
    leading=st.lists(st.integers(0, 5), max_size=3),
    width=st.integers(1, 90),
    layout=LAYOUTS,
)
def test_it_is_the_definition(seed, leading, width, layout):
    check(*draw(seed, (*leading, width), layout))


def test_several_tasks_and_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(rows, "WORTH_A_THREAD", 1)
    for count in range(1, thread_count() + 1):
        with limit_threads(count):
            check(*draw(0, (3 * rows.TASK + 5,)))


def test_gradients_are_added():
    x, dy = np.random.default_rng(1).standard_normal((2, 4, 33), np.float32)
    _, saved = kernel.relu(x)
    owner = np.ones_like(x)
    (dx,) = kernel.relu_backward(dy, saved, add_to=(owner,))
    assert dx is owner
    np.testing.assert_array_equal(owner, kernel.relu_backward(dy, saved)[0] + 1)


def test_arrays_of_another_shape_or_type_are_refused():
    x, dy = draw(2, (4, 33))
    with pytest.raises(TypeError, match="float64"):
        kernel.relu(x.astype(np.float64))
    for pair in (PAIR, DEFINITION):
        check_refusal_of_dy(pair, (x,), dy, {})


def test_the_kernel_runs_where_there_is_much_to_do():
    for length, runs in ((256, True), (255, False)):
        for dtype in (np.float32, np.float64):
            x = np.ones((length, 128), dtype)
            _, call = dispatch.relu(x)
            assert isinstance(call.saved, kernel.Saved) == (runs and dtype == np.float32)
            dispatch.relu_backward(x, call)
