"""A call of attention as kernels see it: one record of addresses, strides and numbers."""

import struct

import numpy as np
from numba.extending import register_jitable

from minitransformer.kernels.cpu.compiling import inlined
from minitransformer.kernels.cpu.emitting import WIDTH
from minitransformer.kernels.cpu.products import ROWS
from minitransformer.kernels.cpu.threads import WORK
from minitransformer.kernels.cpu.vectors import add_atomically, load_integer

STRIDED = np.dtype([(name, np.int64) for name in ("address", "batch", "time", "head")])
"""An array (B, T, H, K): its address, and its strides in bytes. K is contiguous."""

PROBLEM = np.dtype(
    [
        *[(name, STRIDED) for name in ("q", "k", "v", "y", "dy", "dq", "dk", "dv")],
        ("bias", STRIDED),  # (B, Tq, H, Tk) by its strides; address 0 if there is none
        *[(name, np.int64) for name in ("batch", "queries", "keys", "heads", "groups", "width")],
        *[(name, np.int64) for name in ("kv_len", "prefix_len", "offset")],  # addresses of int64 (B,)
        ("scale", np.float64),
        ("keep_scale", np.float64),  # 1 / (1 − rate)
        ("threshold", np.int64),  # dropout keeps where the random word is at least this; 0 is no dropout
        *[(name, np.int64) for name in ("key0", "key1", "stream")],
        *[(name, np.int64) for name in ("largest", "peak")],  # addresses of float32 (B, H, room)
        ("room", np.int64),  # for queries in those: their number, rounded up to whole groups of backward's
        ("tile", np.int64),  # queries
        ("splits", np.int64),  # of each task
        ("split_bytes", np.int64),  # between copies of dk and dv
        ("work", WORK),
    ]
)
"""All that a pass must know; Numba reads it in place."""


def _format_of(dtype):
    """Return the format by which ``struct`` packs the numbers of ``dtype``."""
    if dtype.names is None:
        return {"i": "q", "f": "d"}[dtype.kind]
    return "".join(_format_of(dtype[name]) for name in dtype.names)


_PACKED = struct.Struct("=" + _format_of(PROBLEM))
_ZEROS = {name: (0,) * len(_format_of(PROBLEM[name])) for name in PROBLEM.names}


def record_of(**fields):
    """Return a ``PROBLEM`` with ``fields``, numbers or tuples of them; what is not given is 0.

    Packing all numbers at once is much faster than setting as many fields of a NumPy record.
    """
    values = _ZEROS | fields  # in the order of PROBLEM
    if len(values) > len(_ZEROS):
        raise TypeError(f"PROBLEM has no field {', '.join(fields.keys() - _ZEROS.keys())}")
    numbers = []
    for value in values.values():
        numbers.extend(value if isinstance(value, tuple) else (value,))
    return np.frombuffer(bytearray(_PACKED.pack(*numbers)), PROBLEM)


@inlined
def row_of(array, b, i, h):
    """Return the address of row (b, i, h) of an array."""
    return array.address + b * array.batch + i * array.time + h * array.head


@register_jitable
def rounded_up(number, unit):
    """Return the first multiple of ``unit`` that is not below ``number``."""
    return (number + unit - 1) // unit * unit


@register_jitable
def padded(width):
    """Return how many floats a row takes where rows are computed with: whole vectors, and whole ROWS."""
    return rounded_up(width, max(WIDTH, ROWS))


@inlined
def seen_by(problem, b, i):
    """Return n such that query i of row b sees the keys 0 … n − 1.

    The mask's j < kv_len and (j < prefix_len or j ≤ i + offset) always comes to one j < n.
    """
    kv_len = load_integer(problem.kv_len + 8 * b)
    prefix_len = load_integer(problem.prefix_len + 8 * b)
    offset = load_integer(problem.offset + 8 * b)
    return max(0, min(problem.keys, kv_len, max(prefix_len, i + offset + 1)))


@inlined
def statistics_of(problem, b, h, i):
    """Return where ``largest`` and ``peak`` of the queries from i on are."""
    place = 4 * ((b * problem.heads + h) * problem.room + i)
    return problem.largest + place, problem.peak + place


@inlined
def next_task(problem):
    """Return the number of a task that no other worker has."""
    return add_atomically(problem.work.counter, 1)


@inlined
def scratch_of(problem, worker):
    """Return the address of a worker's scratch memory, at the start of a cache line."""
    return rounded_up(problem.work.scratch + worker * problem.work.scratch_bytes, 64)
