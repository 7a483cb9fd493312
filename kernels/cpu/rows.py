"""What kernels share that compute one row after the other: how rows are found, and how their ends are read.

Entries of the array beside a row are neither read nor written.
"""

import math

import numpy as np

from minitransformer.kernels.cpu.compiling import inline
from minitransformer.kernels.cpu.threads import thread_count
from minitransformer.kernels.cpu.vectors import LANES, load, load_first, store, store_first

TASK = 2**14  # entries of an array per task, or one row
WORTH_A_THREAD = 2**17  # entries; fewer take no longer than to wake a thread


def as_rows(x):
    """Return ``x`` (…, D) as a matrix (N, D) whose rows are contiguous; it is copied if need be."""
    _check_type(x)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return rows if rows.strides[1] == rows.itemsize else np.ascontiguousarray(rows)


def as_contiguous(x):
    """Return ``x``, copied unless all its entries are contiguous."""
    _check_type(x)
    return np.ascontiguousarray(x)


def _check_type(x):
    if x.dtype != np.float32:
        raise TypeError(f"this kernel computes in float32; it was given an array of {x.dtype.name}")


def rows_per_task(width):
    """Return how many rows of ``width`` entries make a task."""
    return max(1, TASK // max(1, width))


def choose_workers(entries):
    """Return how many threads are worth waking for so many entries of an array."""
    return max(1, min(thread_count(), entries // WORTH_A_THREAD))


@inline
def load_some(address, count):
    """Return LANES floats: the first ``count`` at ``address``, which may be more than LANES, then zeros."""
    if count >= LANES:
        return load(address)
    return load_first(address, count)


@inline
def store_some(address, floats, count):
    """Write LANES ``floats``, or the first ``count`` if these are fewer."""
    if count >= LANES:  # masked stores are slow on some processors
        store(address, floats)
    else:
        store_first(address, floats, count)
