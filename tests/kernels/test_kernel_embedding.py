"""Embedding and positions on the CPU against their definitions, both against the definitions in float64."""

import numpy as np
import pytest
from common.fused_embedding import DEFINED_EMBEDDING, DEFINED_POSITIONS, EMBEDDING, POSITIONS, check, draw
from common.kernels_of_rows import LAYOUTS, laid_out
from common.operations import check_refusal_of_dy
from hypothesis import given
from hypothesis import strategies as st

from minitransformer import dispatch
from minitransformer.kernels.cpu import embedding as kernel
from minitransformer.kernels.cpu import rows
from minitransformer.kernels.cpu.threads import limit_threads, thread_count


@given(
    seed=st.integers(0, 2**32),
    batch=st.integers(0, 3),
    length=st.integers(0, 20),
    width=st.integers(1, 70),
    count=st.integers(1, 9),
    layout=LAYOUTS,
    dtype=st.sampled_from(["int64", "int32", "uint16"]),
)
def test_it_is_the_definition(seed, batch, length, width, count, layout, dtype):
    x, table, dy, ids = draw(seed, batch, length, width, count, layout)
    check(x, table, dy, ids.astype(dtype))


def test_the_sums_are_those_of_the_definition_bit_for_bit():
    _, table, dy, ids = draw(0, 5, 40, 77, 6)
    for add_to in (None, (np.ones_like(table),)):
        owners = [None if add_to is None else tuple(owner.copy() for owner in add_to) for _ in range(2)]
        (ours,), (theirs,) = (
            pair[1](dy, pair[0](table, ids=ids)[1], add_to=owner)
            for pair, owner in zip((EMBEDDING, DEFINED_EMBEDDING), owners, strict=True)
        )
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("layout", ["plain", "wide", "transposed", "reversed"])
def test_gradients_are_added_where_they_lie(layout):
    x, table, dy, ids = draw(1, 2, 30, 45, 4)
    plain = kernel.embedding_backward(dy, kernel.embedding(table, ids=ids)[1])
    owner = laid_out(np.ones_like(table), layout)
    (dtable,) = kernel.embedding_backward(dy, kernel.embedding(table, ids=ids)[1], add_to=(owner,))
    assert dtable is owner
    np.testing.assert_allclose(owner, plain[0] + 1, rtol=1e-6, atol=1e-5)
    _, saved = kernel.add_positions(x, table, positions=ids)
    dx, dtable = kernel.add_positions_backward(dy, saved, add_to=(None, owner))
    assert dtable is owner and dx is dy
    np.testing.assert_allclose(owner, 2 * plain[0] + 1, rtol=1e-6, atol=1e-5)


def test_what_is_no_number_spoils_its_row_alone():
    _, table, dy, ids = draw(2, 1, 8, 19, 8)
    ids[0] = np.arange(8)
    dy[0, 3, 18] = np.nan
    (dtable,) = kernel.embedding_backward(dy, kernel.embedding(table, ids=ids)[1])
    np.testing.assert_array_equal(dtable, dy[0])


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr(rows, "WORTH_A_THREAD", 1)
    _, table, dy, ids = draw(3, 3, 200, 200, 9)
    results = []
    for count in range(1, thread_count() + 1):
        with limit_threads(count):
            results.append(kernel.embedding_backward(dy, kernel.embedding(table, ids=ids)[1])[0])
    for result in results:
        np.testing.assert_array_equal(result, results[0])


def test_ids_that_change_after_the_forward_change_nothing():
    _, table, dy, ids = draw(4, 2, 9, 20, 5)
    _, saved = kernel.embedding(table, ids=ids)
    expected = kernel.embedding_backward(dy, saved)[0]
    ids[:] = 10**9
    np.testing.assert_array_equal(kernel.embedding_backward(dy, saved)[0], expected)


def test_bad_arrays_are_refused_in_the_words_of_the_definition():
    x, table, dy, ids = draw(5, 2, 9, 20, 5)
    for pair in (EMBEDDING, DEFINED_EMBEDDING):
        with pytest.raises(ValueError, match=r"embedding: id 7 at index \(1, 2\) is out of range"):
            pair[0](table, ids=np.where(np.arange(18).reshape(2, 9) == 11, 7, ids))
    for pair in (POSITIONS, DEFINED_POSITIONS):
        with pytest.raises(ValueError, match=r"add_positions: x has shape \(2, 9, 20\) and table \(5, 19\)"):
            pair[0](x, table[:, 1:], positions=ids)
    for pair in (EMBEDDING, DEFINED_EMBEDDING):
        check_refusal_of_dy(pair, (table,), dy, {"ids": ids})
    for pair in (POSITIONS, DEFINED_POSITIONS):
        check_refusal_of_dy(pair, (x, table), dy, {"positions": ids})


def test_the_kernel_runs_where_there_is_much_to_do():
    for length, runs in ((256, True), (255, False)):
        x, table, dy, ids = draw(6, 1, length, 128, 7)
        for dtype in (np.float32, np.float64):
            x, table, dy = (array.astype(dtype) for array in (x, table, dy))
            for _, call in (
                dispatch.embedding(table, ids=ids),
                dispatch.add_positions(x, table, positions=ids),
            ):
                assert isinstance(call.saved, kernel.Saved) == (runs and dtype == np.float32)
