"""Fused attention on the CPU: ``functional.attention`` without its probabilities.

FlashAttention (Dao et al., arXiv 2205.14135): scores exist for one block of queries and one of keys at a
time, so memory grows with T, not T². For each query the largest score and its probability are saved, where
others save their combination, one logsumexp; apart they are exact even where scores are large. Backward
recomputes the probabilities, and dropout's mask, which is bit for bit the definition's.
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from minitransformer.functional.attention import check_attention
from minitransformer.functional.dropout import check_rate
from minitransformer.functional.philox import WORD, Key
from minitransformer.functional.rules import backward_uncast, check_gradient, forward_uncast
from minitransformer.kernels.cpu import attention_backward as backward_pass
from minitransformer.kernels.cpu import attention_forward as forward_pass
from minitransformer.kernels.cpu import attention_of_one_query as one_query
from minitransformer.kernels.cpu.attention_problem import PROBLEM
from minitransformer.kernels.cpu.records import address_of, find_accumulator, round_up
from minitransformer.kernels.cpu.threads import run, thread_count

TILES_PER_WORKER = 4  # at least, so that all finish at about the same time
WORTH_A_THREAD = 2e6  # multiplications and additions; less takes no longer than to wake a thread


class Saved(NamedTuple):
    """What ``attention_backward`` needs.

    ``largest`` is each query's largest score in units of log 2 and ``peak`` the probability of that key; R is
    Tq rounded up to whole blocks of queries. Both are None for a single query.
    """

    q: Any  # (B, Tq, H, K)
    k: Any  # (B, Tk, G, K)
    v: Any  # (B, Tk, G, K)
    y: Any  # (B, Tq, H, K)
    largest: Any  # (B, H, R)
    peak: Any  # (B, H, R)
    mask: Any  # int64 (3, B): kv_len, prefix_len and offset
    bias: Any  # (B, H, Tq, Tk) or None
    scale: float
    dropout: float
    key: Key | None


@forward_uncast
def attention(q, k, v, *, mask, bias=None, scale=None, dropout=0.0, key=None):
    """Return ``softmax(q kᵀ · scale + bias) v``; as ``functional.attention``, for float32 arrays of NumPy."""
    check_attention("attention", q, k, v, mask, bias)
    check_rate("attention", dropout)
    if q.dtype != np.float32:
        raise TypeError(f"attention: q is {q.dtype.name}; this kernel computes in float32")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    batch, queries, heads, _ = q.shape
    q, k, v = (_make_rows_contiguous(array) for array in (q, k, v))
    mask = _broadcast_mask(mask, batch)
    bias = None if bias is None else _broadcast_bias(bias, (batch, heads, queries, k.shape[1]))
    y = np.empty(q.shape, q.dtype)
    saved = Saved(q, k, v, y, None, None, mask, bias, scale, dropout if key is not None else 0.0, key)
    if queries == 1 and not saved.dropout:
        _attend_one_query(saved)
    else:
        saved = _add_statistics(saved)
        _attend(saved)
    return y, saved


def _attend(saved):
    """Write ``y``, ``largest`` and ``peak``."""
    if not saved.y.size:
        return
    batch, queries, heads, head_width = saved.q.shape
    workers = _choose_workers(saved, batch * heads * -(-queries // forward_pass.QUERY_BLOCK))
    tile_queries = _choose_tile_queries(queries, batch * heads, workers, forward_pass)
    problem = _describe(saved, tile_queries=tile_queries)
    scratch = forward_pass.scratch_floats(head_width, tile_queries)
    run(forward_pass.attention_forward, problem, scratch, workers)


def _attend_one_query(saved):
    """Write ``y`` for a single query."""
    if not saved.y.size:
        return
    batch, _, heads, head_width = saved.q.shape
    kv_heads = saved.k.shape[2]
    workers = _choose_workers(saved, batch * kv_heads, cost=8)  # of reading memory
    problem = _describe(saved, splits=_choose_splits(batch, kv_heads, workers))
    run(one_query.attention_of_one_query, problem, one_query.scratch_floats(heads, head_width), workers)


@backward_uncast
def attention_backward(dy, saved, *, add_to=None):
    """Return ``dq, dk, dv``.

    They are accumulated directly in the arrays of ``add_to`` where these are float32 views whose rows are
    contiguous and that share no memory, as the parts of a packed projection's gradient are.
    """
    check_gradient("attention_backward", dy, saved.q.shape)
    dq, dk, dv = _accumulators(saved, dy, add_to or (None, None, None))
    if dq.size and dk.size:
        dy = _make_rows_contiguous(dy)
        batch, queries, _, head_width = dq.shape
        tasks = batch * dk.shape[2]
        workers = _choose_workers(saved, tasks * -(-queries // backward_pass.QUERY_BLOCK))
        tile_queries = _choose_tile_queries(queries, tasks, workers, backward_pass)
        splits = _choose_splits(tasks, -(-queries // tile_queries), workers)
        dks, dvs = (d[None] if splits == 1 else np.zeros((splits, *d.shape), d.dtype) for d in (dk, dv))
        if saved.largest is None:  # y again, too: the kernel for a single query rounds differently
            saved = _add_statistics(saved._replace(y=np.empty_like(saved.y)))
            _attend(saved)
        gradients = {"dy": dy, "dq": dq, "dk": dks[0], "dv": dvs[0]}
        places = {name: _locate(array) for name, array in gradients.items()}
        problem = _describe(
            saved, **places, tile_queries=tile_queries, splits=splits, split_bytes=dks.strides[0]
        )
        scratch = backward_pass.scratch_floats(head_width, tile_queries)
        run(backward_pass.attention_backward, problem, scratch, min(workers, splits * tasks))
        if splits > 1:
            for dk_part, dv_part in zip(dks, dvs, strict=True):
                dk += dk_part
                dv += dv_part
    return dq, dk, dv


def _add_statistics(saved):
    """Return ``saved`` with empty arrays for ``largest`` and ``peak``, for whole blocks of queries."""
    batch, queries, heads, _ = saved.q.shape
    room = round_up(queries, backward_pass.QUERY_BLOCK)
    largest, peak = np.empty((2, batch, heads, room), saved.q.dtype)
    return saved._replace(largest=largest, peak=peak)


def _choose_workers(saved, tasks, cost=1):
    """Return how many threads are worth waking, if a multiplication and an addition cost ``cost``."""
    sums = cost * saved.y.size * saved.k.shape[1]
    return max(1, min(thread_count(), tasks, int(sums / WORTH_A_THREAD)))


def _choose_tile_queries(queries, tasks, workers, kernel):
    """Return the queries per tile, whole blocks: as many as leave each worker ``TILES_PER_WORKER`` tiles."""
    tiles = -(-TILES_PER_WORKER * workers // tasks)
    blocks = queries // tiles // kernel.QUERY_BLOCK
    return min(kernel.LARGEST_TILE, max(1, blocks) * kernel.QUERY_BLOCK)


def _choose_splits(tasks, tiles, workers):
    """Return into how many parts to split each task, so that all workers have about as much to do."""
    for splits in range(1, min(workers, tiles) + 1):
        rounds = -(-tasks * splits // workers)
        if tasks * splits >= 0.9 * rounds * workers:
            return splits
    return min(workers, tiles)


def _describe(saved, **fields):
    """Return the record ``PROBLEM`` of a call, with the ``fields`` that depend on the pass."""
    batch, queries, heads, head_width = saved.q.shape
    keys, kv_heads = saved.k.shape[1:3]
    kv_len, prefix_len, offset = (address_of(part) for part in saved.mask)
    key = saved.key or Key(0)
    if saved.bias is not None:
        fields["bias"] = _locate(saved.bias.transpose(0, 2, 1, 3))
    if saved.largest is not None:
        fields |= {"largest": address_of(saved.largest), "peak": address_of(saved.peak)}
        fields["room"] = saved.largest.shape[2]
    return PROBLEM(
        q=_locate(saved.q),
        k=_locate(saved.k),
        v=_locate(saved.v),
        y=_locate(saved.y),
        batch=batch,
        queries=queries,
        keys=keys,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        kv_len=kv_len,
        prefix_len=prefix_len,
        offset=offset,
        scale=saved.scale,
        keep_scale=1 / (1 - saved.dropout),
        threshold=min(WORD, round(saved.dropout * 2**32)),
        key0=key.seed & WORD,
        key1=key.seed >> 32 & WORD,
        stream=key.stream,
        **fields,
    )


def _locate(array):
    """Return the fields ``STRIDED`` of an array (B, T, H, K)."""
    return address_of(array), *array.strides[:3]


def _broadcast_mask(mask, batch):
    """Return the mask's three integers per row as int64 (3, B)."""
    rows = np.empty((len(mask), batch), np.int64)
    for row, part in zip(rows, mask, strict=True):
        row[:] = part
    return rows


def _make_rows_contiguous(array):
    """Return ``array``, copied unless its last axis is contiguous."""
    return array if array.strides[-1] == array.itemsize else np.ascontiguousarray(array)


def _broadcast_bias(bias, shape):
    """Return ``bias`` as float32 and broadcast to (B, H, Tq, Tk); only its last axis may be copied."""
    bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    bias = np.broadcast_to(bias, (*bias.shape[:3], shape[3]))
    with np.errstate(over="ignore"):
        bias = bias.astype(np.float32, copy=False)
    return np.broadcast_to(_make_rows_contiguous(bias), shape)


def _accumulators(saved, dy, add_to):
    """Return the arrays that gradients are added to: those of ``add_to`` that the kernel can use, or zeros.

    Threads write to dq, dk and dv at the same time, so where arrays of ``add_to`` overlap none is used.
    """
    owners = [array for array in add_to if array is not None]
    overlap = any(np.shares_memory(one, other) for one, other in itertools.combinations(owners, 2))
    used = saved.q, saved.k, saved.v, saved.y, saved.bias, dy
    return [
        find_accumulator(None if overlap else owner, array.shape, *used, rows=True)
        for array, owner in zip((saved.q, saved.k, saved.v), add_to, strict=True)
    ]
