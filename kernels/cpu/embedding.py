"""Rows of a table chosen by id, on the CPU: the backwards of ``functional.embedding`` and ``add_positions``.

They add rows to a table, many to the same. A task owns some columns of the table and adds to them for all ids
in order, so no two tasks write to one place, repeated ids count each time, and the sums do not depend on the
number of threads. They are added where the gradient lies. The forwards are NumPy's copies of rows, which are
as fast as a kernel.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import carray

from minitransformer import functional
from minitransformer.functional.rules import backward_uncast, check_gradient, forward_uncast
from minitransformer.kernels.cpu.compiling import kernel
from minitransformer.kernels.cpu.records import (
    MATRIX,
    Layout,
    address_of,
    find_accumulator,
    locate,
    take_task,
)
from minitransformer.kernels.cpu.rows import as_rows, choose_workers, load_some, store_some
from minitransformer.kernels.cpu.threads import run
from minitransformer.kernels.cpu.vectors import LANES, load_integer

TASK_COLUMNS = 32  # of the table, that a task adds to: two cache lines


class Saved(NamedTuple):
    """What the backward passes need: the ids, copied as int64, shapes of the table and of y, and the type."""

    ids: Any  # (N,); of positions that are the same for every row of the batch (T,)
    table_shape: tuple
    shape: tuple
    dtype: Any


@forward_uncast
def embedding(table, *, ids):
    """Return ``table[ids]``; as ``functional.embedding``, for float32 arrays of NumPy."""
    y, _ = functional.embedding(table, ids=ids)
    return y, _save(ids, table, y)


@backward_uncast
def embedding_backward(dy, saved, *, add_to=None):
    """Return ``(dtable,)``."""
    check_gradient("embedding_backward", dy, saved.shape)
    return (_add_rows(dy, saved, add_to[0] if add_to else None),)


@forward_uncast
def add_positions(x, table, *, positions):
    """Return ``x + table[positions]``; as ``functional.add_positions``, for float32 arrays of NumPy."""
    y, _ = functional.add_positions(x, table, positions=positions)
    return y, _save(positions, table, y)


@backward_uncast
def add_positions_backward(dy, saved, *, add_to=None):
    """Return ``dx, dtable``."""
    check_gradient("add_positions_backward", dy, saved.shape)
    return dy, _add_rows(dy, saved, add_to[1] if add_to else None)


def _save(ids, table, y):
    """Return what is saved; a copy of the ids, because a kernel does not check them again."""
    return Saved(np.array(ids, np.int64).reshape(-1), table.shape, y.shape, y.dtype)


def _add_rows(dy, saved, owner):
    """Add the rows of ``dy`` to ``owner``, or to zeros; return it."""
    dtable = find_accumulator(owner, saved.table_shape, dy, rows=True)
    dy = as_rows(dy)
    rows, width = dy.shape
    record = SCATTER(
        dy=locate(dy),
        dtable=locate(dtable),
        ids=address_of(saved.ids),
        id_count=saved.ids.size,
        rows=rows,
        width=width,
    )
    run(scatter_rows, record, 0, choose_workers(dy.size))
    return dtable


SCATTER = Layout(
    ("dy", MATRIX),  # (N, D), rows contiguous
    ("dtable", MATRIX),  # (V, D), rows contiguous
    *("ids", "id_count"),  # row n of dy belongs to row ids[n % id_count] of the table
    *("rows", "width"),
)


@kernel(SCATTER, seconds=1)
def scatter_rows(records, worker):
    """Add the rows of ``dy`` to those of the table. A task is TASK_COLUMNS columns, and all rows in order."""
    record = carray(records, (1,))[0]
    first = take_task(record) * TASK_COLUMNS
    while first < record.width:
        end = min(first + TASK_COLUMNS, record.width)
        for n in range(record.rows):
            row = load_integer(record.ids + 8 * (n % record.id_count))
            target = record.dtable.address + row * record.dtable.row_bytes
            origin = record.dy.address + n * record.dy.row_bytes
            for d in range(first, end, LANES):
                count = end - d
                total = load_some(target + 4 * d, count) + load_some(origin + 4 * d, count)
                store_some(target + 4 * d, total, count)
        first = take_task(record) * TASK_COLUMNS
    return 0
