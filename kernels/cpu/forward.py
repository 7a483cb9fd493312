"""The forward pass of fused attention: FlashAttention-2's (arXiv 2307.08691, algorithm 1) for a processor.

A tile of queries goes down the keys, a block at a time, and keeps for each query the largest score so far,
the sum of exponentials below it, and the mixture of values so far, unnormalised. When a larger score comes,
both are scaled down; no score lives longer than its block.
"""

from numba import carray
from numba.extending import register_jitable

from minitransformer.kernels.cpu.compiling import inlined, kernel
from minitransformer.kernels.cpu.problem import (
    PROBLEM,
    next_task,
    padded,
    row_of,
    scratch_of,
    seen_by,
    statistics_of,
)
from minitransformer.kernels.cpu.tiles import (
    HIDDEN,
    KEYS,
    LOG2_E,
    PAIR,
    add_bias,
    add_mixture,
    drop,
    fill,
    hide,
    note_seen,
    pack,
    rows_times_lanes,
    scale_lanes,
    transpose_in,
    transpose_out,
)
from minitransformer.kernels.cpu.vectors import BYTES, exp2, load, maximum, splat, store, where

QUERIES = 16 * PAIR
"""The most queries of a tile: all of them see a block of keys before the next block is brought near.

What is kept for so many queries fills half of a second-level cache of 1 MiB at a width of 128.
"""


def scratch_floats(width, tile):
    """Return how many floats of scratch memory a worker needs."""
    pairs, step = _places_of_block(0, width)[-1], _places_of_pair(0, width)[-1]
    return (pairs + tile // PAIR * step) // 4


@register_jitable
def _places_of_block(scratch, width):
    """Return where scores, bias, K and V of a block are, and where what is kept for pairs begins."""
    scores = scratch
    bias = scores + 4 * KEYS * PAIR
    k = bias + 4 * KEYS * PAIR
    v = k + 4 * KEYS * padded(width)
    return scores, bias, k, v, v + 4 * KEYS * padded(width)


@register_jitable
def _places_of_pair(kept, width):
    """Return where a pair of vectors of queries has what is kept from block to block; and its end.

    That is q, the mixture of values, factors, totals and who sees what.
    """
    q = kept
    mixture = q + 4 * padded(width) * PAIR
    factors = mixture + 4 * padded(width) * PAIR
    total = factors + 4 * PAIR
    seen = total + 4 * PAIR
    return q, mixture, factors, total, seen, seen + 4 * PAIR


@kernel(PROBLEM, seconds=4)
def attention_forward(problems, worker):
    """Compute ``y``; save each query's largest score and the probability of that, as the backward needs.

    Workers draw tiles one by one, so that none waits for a slower one.
    """
    problem = carray(problems, (1,))[0]
    scratch = scratch_of(problem, worker)
    tiles = (problem.queries + problem.tile - 1) // problem.tile
    task = next_task(problem)
    while task < tiles * problem.batch * problem.heads:
        b, h = task // tiles // problem.heads, task // tiles % problem.heads
        first = (tiles - 1 - task % tiles) * problem.tile  # the last tile sees the most: longest work first
        _attend(problem, b, h, first, min(first + problem.tile, problem.queries), scratch)
        task = next_task(problem)
    return 0


@inlined
def _attend(problem, b, h, first, end, scratch):
    """Compute the queries ``first`` … ``end`` − 1: all pairs of vectors, a block of keys at a time."""
    width, g = problem.width, h // (problem.heads // problem.groups)
    _, _, k, v, pairs = _places_of_block(scratch, width)
    step = _places_of_pair(0, width)[-1]
    for i in range(first, end, PAIR):
        _begin(problem, b, h, i, min(PAIR, end - i), pairs + (i - first) // PAIR * step)
    most = seen_by(problem, b, end - 1)
    for start in range(0, most, KEYS):
        keys = min(KEYS, most - start)
        pack(k, row_of(problem.k, b, start, g), problem.k.time, keys, width)
        pack(v, row_of(problem.v, b, start, g), problem.v.time, keys, width)
        for i in range(first, end, PAIR):
            kept = pairs + (i - first) // PAIR * step
            _attend_block(problem, b, h, i, min(PAIR, end - i), start, kept, scratch)
    for i in range(first, end, PAIR):
        _finish(problem, b, h, i, min(PAIR, end - i), pairs + (i - first) // PAIR * step)


@inlined
def _begin(problem, b, h, i, count, kept):
    """Bring ``count`` queries into lanes, scaled, with nothing seen yet."""
    q, mixture, factors, total, seen, _ = _places_of_pair(kept, problem.width)
    largest, _ = statistics_of(problem, b, h, i)
    note_seen(problem, b, i, PAIR, seen)
    transpose_in(q, PAIR, row_of(problem.q, b, i, h), problem.q.time, count, problem.width)
    fill(factors, PAIR, problem.scale * LOG2_E)
    scale_lanes(q, problem.width, PAIR, factors)
    fill(mixture, padded(problem.width) * PAIR, 0.0)
    fill(largest, PAIR, HIDDEN)
    fill(total, PAIR, 0.0)


@inlined
def _attend_block(problem, b, h, i, count, start, kept, scratch):
    """Let ``count`` queries see a block of keys, if they do."""
    least, most = seen_by(problem, b, i), seen_by(problem, b, i + count - 1)
    keys = min(KEYS, most - start)
    if keys <= 0:
        return
    scores, bias, k, v, _ = _places_of_block(scratch, problem.width)
    q, mixture, factors, total, seen, _ = _places_of_pair(kept, problem.width)
    largest, _ = statistics_of(problem, b, h, i)
    rows_times_lanes(scores, PAIR, 0, k, keys, q, problem.width)
    if problem.bias.address:
        add_bias(problem, b, h, i, count, start, keys, scores, PAIR, bias)
    if start + keys > least:
        hide(scores, PAIR, start, max(0, least - start), keys, seen)
    _exponentials(scores, keys, largest, total, factors)
    if problem.threshold:
        drop(problem, b, h, i, start, scores, PAIR, keys)
    add_mixture(mixture, PAIR, 0, v, keys, scores, problem.width, factors)


@inlined
def _finish(problem, b, h, i, count, kept):
    """Write ``y`` and ``peak`` of ``count`` queries."""
    _, mixture, factors, total, _, _ = _places_of_pair(kept, problem.width)
    largest, peak = statistics_of(problem, b, h, i)
    _normalise(largest, total, peak, factors, problem.keep_scale)
    scale_lanes(mixture, problem.width, PAIR, factors)
    transpose_out(row_of(problem.y, b, i, h), problem.y.time, count, problem.width, mixture, PAIR)


@inlined
def _exponentials(scores, keys, largest, total, rescale):
    """Turn a block of scores into 2^(score − largest so far), and add them to the total so far."""
    row = 4 * PAIR
    for column in range(0, row, BYTES):
        before = load(largest + column)
        now = before
        for place in range(scores + column, scores + column + row * keys, row):
            now = maximum(now, load(place))
        store(largest + column, now)
        factor = exp2(before - now)
        store(rescale + column, factor)
        sum_here = splat(0.0)
        for place in range(scores + column, scores + column + row * keys, row):
            weight = exp2(load(place) - now)
            store(place, weight)
            sum_here = sum_here + weight
        store(total + column, load(total + column) * factor + sum_here)


@inlined
def _normalise(largest, total, peak, factors, keep_scale):
    """Write 1/total to ``peak``, and what the mixture must be multiplied by to ``factors``.

    1/total is the probability of the largest score. A query that sees nothing has 0 for both.
    """
    for column in range(0, 4 * PAIR, BYTES):
        empty = load(largest + column) <= splat(HIDDEN)
        share = where(empty, splat(0.0), splat(1.0) / load(total + column))
        store(peak + column, share)
        store(factors + column, share * splat(keep_scale))
