"""Dropout on the CPU, which gives the bits of its definition."""

import numpy as np
import pytest
from common.fused_dropout import DEFINITION, KEY, PAIR, check, draw
from common.kernels_of_rows import LAYOUTS
from common.operations import check_refusal_of_dy
from hypothesis import given
from hypothesis import strategies as st

from minitransformer import dispatch
from minitransformer.functional import Key
from minitransformer.kernels.cpu import dropout as kernel
from minitransformer.kernels.cpu import rows
from minitransformer.kernels.cpu.threads import limit_threads, thread_count


@given(
    seed=st.integers(0, 2**32),
    leading=st.lists(st.integers(0, 5), max_size=3),
    width=st.integers(1, 150),
    layout=LAYOUTS,
    rate=st.sampled_from([0.0, 0.1, 0.5, 0.999]),
    key=st.builds(Key, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)),
)
def test_it_is_the_definition_bit_for_bit(seed, leading, width, layout, rate, key):
    check(*draw(seed, (*leading, width), layout), rate=rate, key=key)


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr(rows, "WORTH_A_THREAD", 1)
    for count in range(1, thread_count() + 1):
        with limit_threads(count):
            check(*draw(0, (3, 50, 200)))


def test_what_is_no_number_stays_none():
    x, dy = draw(1, (2, 50))
    x[0, :40], dy[1, :40] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        check(x, dy)


def test_gradients_are_added():
    x, dy = draw(2, (4, 33))
    _, saved = kernel.dropout(x, rate=0.5, key=KEY)
    owner = np.ones_like(x)
    (dx,) = kernel.dropout_backward(dy, saved, add_to=(owner,))
    assert dx is owner
    np.testing.assert_array_equal(owner, kernel.dropout_backward(dy, saved)[0] + 1)


def test_bad_calls_are_refused_in_the_words_of_the_definition():
    x, dy = draw(3, (4, 33))
    for pair in (PAIR, DEFINITION):
        with pytest.raises(ValueError, match=r"dropout: dropout is 1\.5; expected a number from 0 up to"):
            pair[0](x, rate=1.5, key=KEY)
        check_refusal_of_dy(pair, (x,), dy, {"rate": 0.5, "key": KEY})


def test_the_kernel_runs_where_there_is_much_to_do():
    for length, runs in ((256, True), (255, False)):
        for dtype in (np.float32, np.float64):
            x, dy = (array.astype(dtype) for array in draw(4, (length, 128)))
            _, call = dispatch.dropout(x, rate=0.5, key=KEY)
            assert isinstance(call.saved, kernel.Saved) == (runs and dtype == np.float32)
            dispatch.dropout_backward(dy, call)
