"""A call of attention as kernels see it: one record of addresses, strides and numbers."""

import struct

import numpy as np
from numba.extending import register_jitable

from minitransformer.kernels.cpu.compiling import inline
from minitransformer.kernels.cpu.emitting import LANES
from minitransformer.kernels.cpu.products import ROWS
from minitransformer.kernels.cpu.threads import WORK
from minitransformer.kernels.cpu.vectors import add_atomically, load_integer

STRIDED = np.dtype([(name, np.int64) for name in ("address", "batch_bytes", "time_bytes", "head_bytes")])
"""An array (B, T, H, K): its address and its strides. The last axis is contiguous."""

PROBLEM = np.dtype(
    [
        *[(name, STRIDED) for name in ("q", "k", "v", "y", "dy", "dq", "dk", "dv")],
        ("bias", STRIDED),  # viewed as (B, Tq, H, Tk); address 0 if there is none
        *[(name, np.int64) for name in ("batch", "queries", "keys", "heads", "kv_heads", "head_width")],
        *[(name, np.int64) for name in ("kv_len", "prefix_len", "offset")],  # addresses of int64 (B,)
        ("scale", np.float64),
        ("keep_scale", np.float64),  # 1 / (1 − rate)
        ("threshold", np.int64),  # dropout keeps where the random word is at least this; 0 is no dropout
        *[(name, np.int64) for name in ("key0", "key1", "stream")],
        *[(name, np.int64) for name in ("largest", "peak")],  # addresses of float32 (B, H, room)
        ("room", np.int64),  # the number of queries, rounded up to whole query blocks of the backward pass
        ("tile_queries", np.int64),  # queries per tile
        ("splits", np.int64),  # per task
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


def make_problem(**fields):
    """Return a ``PROBLEM`` with ``fields``, numbers or tuples of them; fields not given are 0.

    Packing all numbers at once is much faster than setting as many fields of a NumPy record.
    """
    values = _ZEROS | fields  # in the order of PROBLEM
    if len(values) > len(_ZEROS):
        raise TypeError(f"PROBLEM has no field {', '.join(fields.keys() - _ZEROS.keys())}")
    numbers = []
    for value in values.values():
        numbers.extend(value if isinstance(value, tuple) else (value,))
    return np.frombuffer(bytearray(_PACKED.pack(*numbers)), PROBLEM)


@inline
def row_of(array, b, i, h):
    """Return the address of row (b, i, h) of a ``STRIDED`` array."""
    return array.address + b * array.batch_bytes + i * array.time_bytes + h * array.head_bytes


@register_jitable
def round_up(number, unit):
    """Return the first multiple of ``unit`` that is not below ``number``."""
    return (number + unit - 1) // unit * unit


@register_jitable
def padded_width(head_width):
    """Return the number of floats of a row in scratch memory: a multiple of LANES and of ROWS."""
    return round_up(head_width, max(LANES, ROWS))


@inline
def count_visible(problem, b, i):
    """Return n such that query i of batch row b sees the keys 0 … n − 1.

    The mask's condition, j < kv_len and (j < prefix_len or j ≤ i + offset), always has the form j < n.
    """
    kv_len = load_integer(problem.kv_len + 8 * b)
    prefix_len = load_integer(problem.prefix_len + 8 * b)
    offset = load_integer(problem.offset + 8 * b)
    return max(0, min(problem.keys, kv_len, max(prefix_len, i + offset + 1)))


@inline
def statistics_of(problem, b, h, i):
    """Return the addresses of ``largest`` and ``peak`` for the queries from i on."""
    start_bytes = 4 * ((b * problem.heads + h) * problem.room + i)
    return problem.largest + start_bytes, problem.peak + start_bytes


@inline
def take_task(problem):
    """Return the number of a task that no other worker has taken."""
    return add_atomically(problem.work.counter, 1)


@inline
def scratch_of(problem, worker):
    """Return the address of a worker's scratch memory, aligned to a cache line."""
    return round_up(problem.work.scratch + worker * problem.work.scratch_bytes, 64)
