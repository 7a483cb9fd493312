"""A call of attention as kernels see it: one record of addresses, strides and numbers."""

import numpy as np
from numba.extending import register_jitable

from minitransformer.kernels.cpu.compiling import inline
from minitransformer.kernels.cpu.emitting import LANES
from minitransformer.kernels.cpu.products import ROWS
from minitransformer.kernels.cpu.records import Layout, round_up
from minitransformer.kernels.cpu.vectors import load_integer

STRIDED = np.dtype([(name, np.int64) for name in ("address", "batch_bytes", "time_bytes", "head_bytes")])
"""An array (B, T, H, K): its address and its strides. The last axis is contiguous."""

PROBLEM = Layout(
    *[(name, STRIDED) for name in ("q", "k", "v", "y", "dy", "dq", "dk", "dv")],
    ("bias", STRIDED),  # viewed as (B, Tq, H, Tk); address 0 if there is none
    *("batch", "queries", "keys", "heads", "kv_heads", "head_width"),
    *("kv_len", "prefix_len", "offset"),  # addresses of int64 (B,)
    ("scale", np.float64),
    ("keep_scale", np.float64),  # 1 / (1 − rate)
    "threshold",  # dropout keeps where the random word is at least this; 0 is no dropout
    *("key0", "key1", "stream"),
    *("largest", "peak"),  # addresses of float32 (B, H, room)
    "room",  # the number of queries, rounded up to whole query blocks of the backward pass
    "tile_queries",  # queries per tile
    "splits",  # per task
    "split_bytes",  # between copies of dk and dv
)
"""All that a pass must know."""


@inline
def row_of(array, b, i, h):
    """Return the address of row (b, i, h) of a ``STRIDED`` array."""
    return array.address + b * array.batch_bytes + i * array.time_bytes + h * array.head_bytes


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
