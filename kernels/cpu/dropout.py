"""Dropout on the CPU: ``functional.dropout``, which drops bit for bit what the definition drops.

The mask is never stored: random words are computed where they are compared.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import carray

from minitransformer.functional.dropout import check_rate
from minitransformer.functional.philox import WORD, Key
from minitransformer.functional.rules import backward_uncast, check_gradient, forward_uncast
from minitransformer.kernels.cpu.compiling import inline, kernel
from minitransformer.kernels.cpu.philox import philox
from minitransformer.kernels.cpu.records import MATRIX, Layout, address_of, locate, take_task
from minitransformer.kernels.cpu.rows import as_rows, choose_workers, load_some, rows_per_task, store_some
from minitransformer.kernels.cpu.threads import run
from minitransformer.kernels.cpu.vectors import (
    LANES,
    interleave,
    lane_numbers,
    longs,
    splat,
    where,
    words,
)

COST = 8  # of an entry, in those of a copy


class Saved(NamedTuple):
    """What ``dropout_backward`` needs."""

    rate: float
    key: Key
    shape: tuple  # of x
    dtype: Any  # of x


@forward_uncast
def dropout(x, *, rate, key):
    """Return ``x · keep / (1 − rate)``; as ``functional.dropout``, for float32 arrays of NumPy."""
    check_rate("dropout", rate)
    return _drop(x, rate, key), Saved(rate, key, x.shape, x.dtype)


@backward_uncast
def dropout_backward(dy, saved):
    """Return ``(dx,)``."""
    check_gradient("dropout_backward", dy, saved.shape)
    return (_drop(dy, saved.rate, saved.key),)


def _drop(x, rate, key):
    y, rows = np.empty(x.shape, x.dtype), as_rows(x)
    record = DROPOUT(
        x=locate(rows),
        y=address_of(y),
        rows=rows.shape[0],
        width=rows.shape[1],
        length=x.shape[-2] if x.ndim > 1 else 1,
        task_rows=rows_per_task(COST * rows.shape[1]),
        threshold=min(WORD, round(rate * 2**32)),
        keep_scale=1 / (1 - rate),
        key0=key.seed & WORD,
        key1=key.seed >> 32 & WORD,
        stream=key.stream,
    )
    run(drop_rows, record, 0, choose_workers(COST * x.size))
    return y


DROPOUT = Layout(
    ("x", MATRIX),  # (N, D), rows contiguous
    "y",  # the address of (N, D), contiguous
    *("rows", "width", "length", "task_rows"),  # length: T of (…, T, D)
    "threshold",  # what is kept has a random word of at least this
    ("keep_scale", np.float64),  # 1 / (1 − rate)
    *("key0", "key1", "stream"),
)


@kernel(DROPOUT, seconds=1)
def drop_rows(records, worker):
    """Write ``y``. A task is ``task_rows`` rows."""
    record = carray(records, (1,))[0]
    first = take_task(record) * record.task_rows
    while first < record.rows:
        for n in range(first, min(first + record.task_rows, record.rows)):
            _drop_row(record, n)
        first = take_task(record) * record.task_rows
    return 0


@inline
def _drop_row(record, n):
    """Write row n of ``y``: four words of Philox for every four entries."""
    threshold, keep_scale, zero = words(record.threshold), splat(record.keep_scale), splat(0.0)
    x, y = record.x.address + n * record.x.row_bytes, record.y + 4 * n * record.width
    i, outer = longs(n % record.length), longs(n // record.length)
    for first in range(0, record.width, 4 * LANES):
        counter = longs(lane_numbers() + words(first // 4)), i, outer, longs(record.stream)
        for number, word in enumerate(interleave(philox(counter, record.key0, record.key1))):
            d = first + number * LANES
            count = record.width - d
            if count > 0:
                factor = where(word >= threshold, keep_scale, zero)
                store_some(y + 4 * d, load_some(x + 4 * d, count) * factor, count)
