"""The rectifier on the CPU: ``functional.relu`` in one pass each way.

No booleans are stored. What is saved is the result, which is positive where x is.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import carray

from minitransformer.functional.rules import backward_uncast, check_gradient, forward_uncast
from minitransformer.kernels.cpu.compiling import kernel
from minitransformer.kernels.cpu.records import Layout, address_of, take_task
from minitransformer.kernels.cpu.rows import TASK, as_contiguous, choose_workers, load_some, store_some
from minitransformer.kernels.cpu.threads import run
from minitransformer.kernels.cpu.vectors import LANES, splat, where


class Saved(NamedTuple):
    """What ``relu_backward`` needs."""

    y: Any  # (…)


@forward_uncast
def relu(x):
    """Return ``max(x, 0)``; as ``functional.relu``, for float32 arrays of NumPy."""
    x, y = as_contiguous(x), np.empty(x.shape, x.dtype)
    run(rectify, ENTRIES(x=address_of(x), y=address_of(y), size=x.size), 0, choose_workers(x.size))
    return y, Saved(y)


@backward_uncast
def relu_backward(dy, saved):
    """Return ``(dx,)``."""
    check_gradient("relu_backward", dy, saved.y.shape)
    dy, dx = as_contiguous(dy), np.empty(dy.shape, dy.dtype)
    record = ENTRIES(x=address_of(dx), y=address_of(saved.y), dy=address_of(dy), size=dx.size)
    run(rectify_backward, record, 0, choose_workers(dx.size))
    return (dx,)


ENTRIES = Layout("x", "y", "dy", "size")
"""The addresses of arrays of ``size`` entries, contiguous: x or dx, y, dy."""


@kernel(ENTRIES, seconds=1)
def rectify(records, worker):
    """Write ``y``. A task is TASK entries."""
    record = carray(records, (1,))[0]
    zero = splat(0.0)
    first = take_task(record) * TASK
    while first < record.size:
        end = min(first + TASK, record.size)
        for n in range(first, end, LANES):
            x = load_some(record.x + 4 * n, end - n)
            store_some(record.y + 4 * n, where(x <= zero, zero, x), end - n)  # NaN stays
        first = take_task(record) * TASK
    return 0


@kernel(ENTRIES, seconds=1)
def rectify_backward(records, worker):
    """Write ``dx`` to ``x``. A task is TASK entries."""
    record = carray(records, (1,))[0]
    zero, one = splat(0.0), splat(1.0)
    first = take_task(record) * TASK
    while first < record.size:
        end = min(first + TASK, record.size)
        for n in range(first, end, LANES):
            positive = where(load_some(record.y + 4 * n, end - n) > zero, one, zero)
            store_some(record.x + 4 * n, load_some(record.dy + 4 * n, end - n) * positive, end - n)
        first = take_task(record) * TASK
    return 0
