"""The forward pass of fused attention: FlashAttention-2's (arXiv 2307.08691, algorithm 1) for a processor.

For a tile of queries it loops over blocks of keys and keeps for each query the largest score so far, the sum
of exponentials relative to it, and the sum of values weighted by them, unnormalised. When a larger score
appears, both sums are scaled down. Scores exist for one block at a time.
"""

from numba import carray
from numba.extending import register_jitable

from minitransformer.kernels.cpu.attention_problem import (
    PROBLEM,
    count_visible,
    padded_width,
    row_of,
    statistics_of,
)
from minitransformer.kernels.cpu.attention_tiles import (
    COLUMNS,
    HIDDEN,
    KEY_BLOCK,
    LOG2_E,
    add_bias,
    add_weighted_rows,
    drop,
    fill,
    hide,
    multiply_rows_by_lanes,
    pack,
    scale_lanes,
    store_visible_counts,
    transpose_in,
    transpose_out,
)
from minitransformer.kernels.cpu.compiling import inline, kernel
from minitransformer.kernels.cpu.records import scratch_of, take_task
from minitransformer.kernels.cpu.vectors import VECTOR_BYTES, exp2, load, maximum, splat, store, where

QUERY_BLOCK = COLUMNS  # queries whose scores exist at a time
LARGEST_TILE = 16 * QUERY_BLOCK
"""The most queries of a tile: each packed block of keys is used for all of them.

The state of so many queries fills half of a second-level cache of 1 MiB at a head width of 128.
"""


def scratch_floats(head_width, tile_queries):
    """Return the number of floats of scratch memory that a worker needs."""
    states, state_bytes = _key_block_layout(0, head_width)[-1], _state_layout(0, head_width)[-1]
    return (states + tile_queries // QUERY_BLOCK * state_bytes) // 4


@register_jitable
def _key_block_layout(scratch, head_width):
    """Return the addresses of a key block's scores, bias, k and v, and of the states of query blocks."""
    scores = scratch
    bias = scores + 4 * KEY_BLOCK * QUERY_BLOCK
    k_block = bias + 4 * KEY_BLOCK * QUERY_BLOCK
    v_block = k_block + 4 * KEY_BLOCK * padded_width(head_width)
    return scores, bias, k_block, v_block, v_block + 4 * KEY_BLOCK * padded_width(head_width)


@register_jitable
def _state_layout(state, head_width):
    """Return the addresses of what a block of queries keeps from one block of keys to the next; and its end.

    That is q in lanes, the weighted sum of values in lanes, and per query a factor, the total of the weights
    and the count of visible keys.
    """
    q_lanes = state
    weighted_sum = q_lanes + 4 * padded_width(head_width) * QUERY_BLOCK
    factors = weighted_sum + 4 * padded_width(head_width) * QUERY_BLOCK
    totals = factors + 4 * QUERY_BLOCK
    visible_counts = totals + 4 * QUERY_BLOCK
    return q_lanes, weighted_sum, factors, totals, visible_counts, visible_counts + 4 * QUERY_BLOCK


@kernel(PROBLEM, seconds=4)
def attention_forward(problems, worker):
    """Compute ``y``; save each query's largest score and that key's probability, as the backward needs.

    A task is a tile of queries of one head. Workers take tasks one by one, so that none waits for a slower
    one.
    """
    problem = carray(problems, (1,))[0]
    scratch = scratch_of(problem, worker)
    tiles = (problem.queries + problem.tile_queries - 1) // problem.tile_queries
    task = take_task(problem)
    while task < tiles * problem.batch * problem.heads:
        b, h = task // tiles // problem.heads, task // tiles % problem.heads
        tile = tiles - 1 - task % tiles  # the last tile sees most keys: longest work first
        first = tile * problem.tile_queries
        _attend(problem, b, h, first, min(first + problem.tile_queries, problem.queries), scratch)
        task = take_task(problem)
    return 0


@inline
def _attend(problem, b, h, first, end, scratch):
    """Compute the queries ``first`` … ``end`` − 1, a block of keys at a time."""
    head_width, g = problem.head_width, h // (problem.heads // problem.kv_heads)
    _, _, k_block, v_block, states = _key_block_layout(scratch, head_width)
    state_bytes = _state_layout(0, head_width)[-1]
    for i in range(first, end, QUERY_BLOCK):
        state = states + (i - first) // QUERY_BLOCK * state_bytes
        _begin(problem, b, h, i, min(QUERY_BLOCK, end - i), state)
    visible_count = count_visible(problem, b, end - 1)
    for start in range(0, visible_count, KEY_BLOCK):
        keys = min(KEY_BLOCK, visible_count - start)
        pack(k_block, row_of(problem.k, b, start, g), problem.k.time_bytes, keys, head_width)
        pack(v_block, row_of(problem.v, b, start, g), problem.v.time_bytes, keys, head_width)
        for i in range(first, end, QUERY_BLOCK):
            state = states + (i - first) // QUERY_BLOCK * state_bytes
            _attend_block(problem, b, h, i, min(QUERY_BLOCK, end - i), start, state, scratch)
    for i in range(first, end, QUERY_BLOCK):
        state = states + (i - first) // QUERY_BLOCK * state_bytes
        _finish(problem, b, h, i, min(QUERY_BLOCK, end - i), state)


@inline
def _begin(problem, b, h, i, count, state):
    """Transpose ``count`` queries into lanes, scaled, and initialise their state."""
    q_lanes, weighted_sum, factors, totals, visible_counts, _ = _state_layout(state, problem.head_width)
    largest, _ = statistics_of(problem, b, h, i)
    store_visible_counts(problem, b, i, QUERY_BLOCK, visible_counts)
    origin = row_of(problem.q, b, i, h)
    transpose_in(q_lanes, QUERY_BLOCK, origin, problem.q.time_bytes, count, problem.head_width)
    fill(factors, QUERY_BLOCK, problem.scale * LOG2_E)
    scale_lanes(q_lanes, problem.head_width, QUERY_BLOCK, factors)
    fill(weighted_sum, padded_width(problem.head_width) * QUERY_BLOCK, 0.0)
    fill(largest, QUERY_BLOCK, HIDDEN)
    fill(totals, QUERY_BLOCK, 0.0)


@inline
def _attend_block(problem, b, h, i, count, start, state, scratch):
    """Add a block of keys to the state of ``count`` queries, unless it is invisible to all of them."""
    fewest, most = count_visible(problem, b, i), count_visible(problem, b, i + count - 1)
    keys = min(KEY_BLOCK, most - start)
    if keys <= 0:
        return
    scores, bias, k_block, v_block, _ = _key_block_layout(scratch, problem.head_width)
    q_lanes, weighted_sum, factors, totals, visible_counts, _ = _state_layout(state, problem.head_width)
    largest, _ = statistics_of(problem, b, h, i)
    multiply_rows_by_lanes(scores, QUERY_BLOCK, 0, k_block, keys, q_lanes, problem.head_width)
    if problem.bias.address:
        add_bias(problem, b, h, i, count, start, keys, scores, QUERY_BLOCK, bias)
    if start + keys > fewest:
        hide(scores, QUERY_BLOCK, start, max(0, fewest - start), keys, visible_counts)
    _exponentiate(scores, keys, largest, totals, factors)
    if problem.threshold:
        drop(problem, b, h, i, start, scores, QUERY_BLOCK, keys)
    add_weighted_rows(weighted_sum, QUERY_BLOCK, 0, v_block, keys, scores, problem.head_width, factors)


@inline
def _finish(problem, b, h, i, count, state):
    """Write ``y`` and ``peak`` of ``count`` queries."""
    _, weighted_sum, factors, totals, _, _ = _state_layout(state, problem.head_width)
    largest, peak = statistics_of(problem, b, h, i)
    _normalise(largest, totals, peak, factors, problem.keep_scale)
    scale_lanes(weighted_sum, problem.head_width, QUERY_BLOCK, factors)
    target = row_of(problem.y, b, i, h)
    transpose_out(target, problem.y.time_bytes, count, problem.head_width, weighted_sum, QUERY_BLOCK)


@inline
def _exponentiate(scores, keys, largest, totals, rescale):
    """Turn a block of scores into weights, 2^(score − largest so far), and add them to the totals so far.

    Write to ``rescale`` the factors by which the sums so far must be scaled down.
    """
    row_bytes = 4 * QUERY_BLOCK
    for lane_bytes in range(0, row_bytes, VECTOR_BYTES):
        before = load(largest + lane_bytes)
        now = before
        for address in range(scores + lane_bytes, scores + lane_bytes + row_bytes * keys, row_bytes):
            now = maximum(now, load(address))
        store(largest + lane_bytes, now)
        factor = exp2(before - now)
        store(rescale + lane_bytes, factor)
        total = splat(0.0)
        for address in range(scores + lane_bytes, scores + lane_bytes + row_bytes * keys, row_bytes):
            weight = exp2(load(address) - now)
            store(address, weight)
            total = total + weight
        store(totals + lane_bytes, load(totals + lane_bytes) * factor + total)


@inline
def _normalise(largest, totals, peak, factors, keep_scale):
    """Write 1/total to ``peak``, and what the weighted sum must be multiplied by to ``factors``.

    1/total is the probability of the key with the largest score. Both are 0 for a query without visible keys.
    """
    for lane_bytes in range(0, 4 * QUERY_BLOCK, VECTOR_BYTES):
        empty = load(largest + lane_bytes) <= splat(HIDDEN)
        share = where(empty, splat(0.0), splat(1.0) / load(totals + lane_bytes))
        store(peak + lane_bytes, share)
        store(factors + lane_bytes, share * splat(keep_scale))
