"""Fused attention on the CPU: ``functional.attention`` without its probabilities.

FlashAttention (Dao et al., arXiv 2205.14135): scores exist for one tile of queries and one block of keys at a
time, so memory grows with T, not T². Of each query the largest score and its probability are saved, which is
what others keep as one logsumexp; kept apart they are exact where scores are large. Backward makes the
probabilities again, and dropout's mask too, which is the definition's own bit for bit.
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from minitransformer import functional
from minitransformer.functional.attention import check_attention, check_gradient
from minitransformer.functional.dropout import check_rate
from minitransformer.functional.philox import WORD, Key
from minitransformer.functional.rules import backward, forward
from minitransformer.kernels.cpu import backward as backward_pass
from minitransformer.kernels.cpu import forward as forward_pass
from minitransformer.kernels.cpu import one_query, usable
from minitransformer.kernels.cpu.problem import record_of, rounded_up
from minitransformer.kernels.cpu.threads import run, thread_count
from minitransformer.kernels.cpu.tiles import PAIR

TILES_A_WORKER = 4  # at least, so that all end at about the same time
WORTH_A_THREAD = 5e6  # multiplications and additions: less is done before a thread has woken up


class Saved(NamedTuple):
    """What ``attention_backward`` needs.

    ``largest`` is each query's largest score in units of log 2 and ``peak`` the probability of that key,
    both (B, H, Tq rounded up to whole groups); None where there was but one query.
    """

    q: Any
    k: Any
    v: Any
    y: Any
    largest: Any
    peak: Any
    mask: Any
    bias: Any
    scale: float
    dropout: float
    key: Key | None


@forward
def attention(q, k, v, *, mask, bias=None, scale=None, dropout=0.0, key=None):
    """Return ``softmax(q kᵀ · scale + bias) v``; as ``functional.attention``, for float32 arrays of NumPy."""
    check_attention("attention", q, k, v, mask, bias)
    check_rate("attention", dropout)
    if q.dtype != np.float32:
        raise TypeError(f"attention: q is {q.dtype.name}; this kernel computes in float32")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    batch, queries, heads, _ = q.shape
    q, k, v = (_with_contiguous_rows(array) for array in (q, k, v))
    mask = _rows_of_mask(mask, batch)
    bias = None if bias is None else _whole_bias(bias, (batch, heads, queries, k.shape[1]))
    y = np.empty(q.shape, q.dtype)
    saved = Saved(q, k, v, y, None, None, mask, bias, scale, dropout if key is not None else 0.0, key)
    if queries == 1 and not saved.dropout:
        _attend_one_query(saved)
    else:
        saved = _with_statistics(saved)
        _attend(saved)
    return y, saved


def _attend(saved):
    """Write ``y``, ``largest`` and ``peak``."""
    if not saved.y.size:
        return
    batch, queries, heads, width = saved.q.shape
    workers = _workers(saved, batch * heads * -(-queries // PAIR))
    tile = _tile(queries, batch * heads, workers, PAIR, forward_pass.QUERIES)
    problem = _problem(saved, tile=tile)
    run(forward_pass.attention_forward, problem, forward_pass.scratch_floats(width, tile), workers)


def _attend_one_query(saved):
    """Write ``y`` where there is one query."""
    if not saved.y.size:
        return
    batch, _, heads, width = saved.q.shape
    groups = saved.k.shape[2]
    workers = _workers(saved, batch * groups, cost=8)  # of reading memory
    problem = _problem(saved, splits=_splits(batch, groups, workers))
    run(one_query.attention_of_one_query, problem, one_query.scratch_floats(heads, width), workers)


@backward
def attention_backward(dy, saved, *, add_to=None):
    """Return ``dq, dk, dv``.

    They are accumulated straight in the arrays of ``add_to`` where these are float32 views whose rows are
    contiguous and that share no memory, as the parts of a packed projection's gradient are.
    """
    check_gradient(dy, saved.q)
    if not usable():
        return _backward_of_definition(dy, saved)
    dq, dk, dv = _accumulators((saved.q, saved.k, saved.v), add_to or (None, None, None))
    if dq.size and dk.size:
        dy = _with_contiguous_rows(dy)
        batch, queries, _, width = dq.shape
        tasks = batch * dk.shape[2]
        workers = _workers(saved, tasks * -(-queries // backward_pass.GROUP))
        tile = _tile(queries, tasks, workers, backward_pass.GROUP, backward_pass.QUERIES)
        splits = _splits(tasks, -(-queries // tile), workers)
        dks, dvs = (d[None] if splits == 1 else np.zeros((splits, *d.shape), d.dtype) for d in (dk, dv))
        if saved.largest is None:  # tiles round a little otherwise than what computed the one query did
            saved = _with_statistics(saved._replace(y=np.empty_like(saved.y)))
            _attend(saved)
        gradients = {"dy": dy, "dq": dq, "dk": dks[0], "dv": dvs[0]}
        places = {name: _place(array) for name, array in gradients.items()}
        problem = _problem(saved, **places, tile=tile, splits=splits, split_bytes=dks.strides[0])
        scratch = backward_pass.scratch_floats(width, tile)
        run(backward_pass.attention_backward, problem, scratch, min(workers, splits * tasks))
        if splits > 1:
            for dk_part, dv_part in zip(dks, dvs, strict=True):
                dk += dk_part
                dv += dv_part
    return dq, dk, dv


def _with_statistics(saved):
    """Return ``saved`` with arrays for ``largest`` and ``peak``, with room for whole groups of queries."""
    batch, queries, heads, _ = saved.q.shape
    room = rounded_up(queries, backward_pass.GROUP)
    largest, peak = np.empty((2, batch, heads, room), saved.q.dtype)
    return saved._replace(largest=largest, peak=peak)


def _workers(saved, tasks, cost=1):
    """Return how many threads are of use, where a multiplication and addition costs ``cost``."""
    sums = cost * saved.y.size * saved.k.shape[1]
    return max(1, min(thread_count(), tasks, int(sums / WORTH_A_THREAD)))


def _tile(queries, tasks, workers, unit, most):
    """Return how many queries make a tile: as many as keep ``TILES_A_WORKER``, in units."""
    tiles = -(-TILES_A_WORKER * workers // tasks)
    return min(most, max(unit, queries // tiles // unit * unit))


def _splits(tasks, tiles, workers):
    """Return into how many parts to cut each task, so that all workers have about as much to do."""
    for splits in range(1, min(workers, tiles) + 1):
        rounds = -(-tasks * splits // workers)
        if tasks * splits >= 0.9 * rounds * workers:
            return splits
    return min(workers, tiles)


def _problem(saved, **fields):
    """Return the record ``PROBLEM`` that describes a call, with ``fields`` that depend on the pass."""
    batch, queries, heads, width = saved.q.shape
    keys, groups = saved.k.shape[1:3]
    kv_len, prefix_len, offset = (_address(part) for part in saved.mask)
    key = saved.key or Key(0)
    if saved.bias is not None:
        fields["bias"] = _place(saved.bias.transpose(0, 2, 1, 3))
    if saved.largest is not None:
        fields |= {"largest": _address(saved.largest), "peak": _address(saved.peak)}
        fields["room"] = saved.largest.shape[2]
    return record_of(
        q=_place(saved.q),
        k=_place(saved.k),
        v=_place(saved.v),
        y=_place(saved.y),
        batch=batch,
        queries=queries,
        keys=keys,
        heads=heads,
        groups=groups,
        width=width,
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


def _address(array):
    return array.__array_interface__["data"][0]


def _place(array):
    """Return where (B, T, H, K) lies."""
    return _address(array), *array.strides[:3]


def _rows_of_mask(mask, batch):
    """Return the mask's parts as int64 (3, B)."""
    rows = np.empty((len(mask), batch), np.int64)
    for row, part in zip(rows, mask, strict=True):
        row[:] = part
    return rows


def _with_contiguous_rows(array):
    """Return ``array``, copied if neighbours in its last axis are no neighbours in memory."""
    return array if array.strides[-1] == array.itemsize else np.ascontiguousarray(array)


def _whole_bias(bias, shape):
    """Return ``bias`` as float32, viewed as (B, H, Tq, Tk); copied only along the last axis."""
    bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    bias = np.broadcast_to(bias, (*bias.shape[:3], shape[3]))
    with np.errstate(over="ignore"):
        bias = bias.astype(np.float32, copy=False)
    return np.broadcast_to(_with_contiguous_rows(bias), shape)


def _accumulators(arrays, add_to):
    """Return the arrays that gradients are added to: those of ``add_to`` that the kernel can use, or zeros.

    Two threads may write to dq and dk at the same time, so arrays that overlap are left to the caller's sum.
    """
    owners = [array for array in add_to if array is not None]
    overlap = any(np.shares_memory(one, other) for one, other in itertools.combinations(owners, 2))
    return [
        owner if not overlap and _is_usable(owner, array) else np.zeros(array.shape, array.dtype)
        for array, owner in zip(arrays, add_to, strict=True)
    ]


def _is_usable(owner, array):
    """Return whether the kernel can add the gradient of ``array`` to ``owner``."""
    return (
        isinstance(owner, np.ndarray)
        and (owner.dtype, owner.shape) == (array.dtype, array.shape)
        and owner.strides[-1] == owner.itemsize
        and owner.flags.writeable
    )


def _backward_of_definition(dy, saved):
    settings = {name: getattr(saved, name) for name in ("mask", "bias", "scale", "dropout", "key")}
    _, of_definition = functional.attention(
        saved.q, saved.k, saved.v, **settings | {"mask": functional.Mask(*saved.mask)}
    )
    return functional.attention_backward(dy, of_definition)
