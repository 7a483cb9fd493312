"""The backward pass of fused attention: FlashAttention's (arXiv 2205.14135, algorithm 4) for a processor.

Probabilities are recomputed from the scores and the two numbers that the forward saved for each query. With
s the scores in units of log 2, largest and peak as saved, and delta = Σ dy·y of a query:

    e = 2^(s − largest),  P = e · peak,  dP = dropout(v dy),  dscores = P · (dP − delta)

dy and delta are multiplied by ``peak`` and by dropout's 1/(1 − rate) once per query, so that the inner loop
is dscores = e · (dP − delta).
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
    KEY_BLOCK,
    LOG2_E,
    add_bias,
    add_lanes_times_rows,
    add_rows,
    add_weighted_rows,
    fill,
    hide,
    multiply_rows_by_lanes,
    pack,
    random_words,
    scale_lanes,
    store_visible_counts,
    transpose_in,
    transpose_out,
)
from minitransformer.kernels.cpu.compiling import inline, kernel
from minitransformer.kernels.cpu.products import ROWS
from minitransformer.kernels.cpu.records import round_up, scratch_of, take_task
from minitransformer.kernels.cpu.vectors import (
    LANES,
    VECTOR_BYTES,
    exp2,
    fused,
    load,
    splat,
    store,
    where,
    words,
)

QUERY_BLOCK = 2 * COLUMNS  # queries whose scores exist at a time: the depth of the products for dk and dv
LARGEST_TILE = 4 * QUERY_BLOCK
"""The most queries of a tile: each packed block of keys is used for all of them."""


def scratch_floats(head_width, tile_queries):
    """Return the number of floats of scratch memory that a worker needs."""
    states, state_bytes = _key_block_layout(0, head_width)[-1], _state_layout(0, head_width)[-1]
    return (states + tile_queries // QUERY_BLOCK * state_bytes) // 4


@register_jitable
def _key_block_layout(scratch, head_width):
    """Return the addresses of a key block's scores, dscores, bias, k, v, dk, dv, ones; and of the states."""
    scores = scratch
    dscores = scores + 4 * KEY_BLOCK * QUERY_BLOCK
    bias = dscores + 4 * KEY_BLOCK * QUERY_BLOCK
    k_block = bias + 4 * KEY_BLOCK * QUERY_BLOCK
    v_block = k_block + 4 * KEY_BLOCK * padded_width(head_width)
    dk_block = v_block + 4 * KEY_BLOCK * padded_width(head_width)
    dv_block = dk_block + 4 * KEY_BLOCK * padded_width(head_width)
    ones = dv_block + 4 * KEY_BLOCK * padded_width(head_width)
    return scores, dscores, bias, k_block, v_block, dk_block, dv_block, ones, ones + 4 * QUERY_BLOCK


@register_jitable
def _state_layout(state, head_width):
    """Return the addresses of what a block of queries keeps from one block of keys to the next; and its end.

    That is q, dy and dq in lanes, q and dy in rows, and per query delta, a factor and the count of visible
    keys.
    """
    block_bytes = 4 * padded_width(head_width) * QUERY_BLOCK
    q_lanes, dy_lanes, dq_lanes = state, state + block_bytes, state + 2 * block_bytes
    q_rows, dy_rows = state + 3 * block_bytes, state + 4 * block_bytes
    deltas = state + 5 * block_bytes
    factors = deltas + 4 * QUERY_BLOCK
    visible_counts = factors + 4 * QUERY_BLOCK
    end = visible_counts + 4 * QUERY_BLOCK
    return q_lanes, dy_lanes, dq_lanes, q_rows, dy_rows, deltas, factors, visible_counts, end


@kernel(PROBLEM, seconds=8)
def attention_backward(problems, worker):
    """Add to dq, and to dk and dv, of which there are ``splits`` copies, ``split_bytes`` apart.

    A task is a key/value head and its share of the tiles of queries: no two tasks add to the same element, so
    the result does not depend on the order in which workers take tasks.
    """
    problem = carray(problems, (1,))[0]
    scratch = scratch_of(problem, worker)
    tiles, splits = (problem.queries + problem.tile_queries - 1) // problem.tile_queries, problem.splits
    group_size = problem.heads // problem.kv_heads
    task = take_task(problem)
    while task < splits * problem.batch * problem.kv_heads:
        split, g, b = task % splits, task // splits % problem.kv_heads, task // splits // problem.kv_heads
        for tile in range(tiles):
            turn = tile % (2 * splits)  # 0 1 2 2 1 0 …: causal tiles grow, and so each split gets as much
            if split == min(turn, 2 * splits - 1 - turn):
                first = tile * problem.tile_queries
                end = min(first + problem.tile_queries, problem.queries)
                for h in range(g * group_size, (g + 1) * group_size):
                    _differentiate(problem, b, h, g, first, end, split * problem.split_bytes, scratch)
        task = take_task(problem)
    return 0


@inline
def _differentiate(problem, b, h, g, first, end, split_bytes, scratch):
    """Add to dq of the queries ``first`` … ``end`` − 1, and to dk and dv what these queries contribute."""
    head_width, row_bytes = problem.head_width, 4 * padded_width(problem.head_width)
    _, _, _, k_block, v_block, dk_block, dv_block, ones, states = _key_block_layout(scratch, head_width)
    state_bytes = _state_layout(0, head_width)[-1]
    fill(ones, QUERY_BLOCK, 1.0)
    for i in range(first, end, QUERY_BLOCK):
        state = states + (i - first) // QUERY_BLOCK * state_bytes
        _begin(problem, b, h, i, min(QUERY_BLOCK, end - i), state)
    visible_count = count_visible(problem, b, end - 1)
    for start in range(0, visible_count, KEY_BLOCK):
        keys = min(KEY_BLOCK, visible_count - start)
        pack(k_block, row_of(problem.k, b, start, g), problem.k.time_bytes, keys, head_width)
        pack(v_block, row_of(problem.v, b, start, g), problem.v.time_bytes, keys, head_width)
        fill(dk_block, KEY_BLOCK * padded_width(head_width), 0.0)
        fill(dv_block, KEY_BLOCK * padded_width(head_width), 0.0)
        for i in range(first, end, QUERY_BLOCK):
            state = states + (i - first) // QUERY_BLOCK * state_bytes
            _differentiate_block(problem, b, h, i, min(QUERY_BLOCK, end - i), start, state, scratch)
        dk, dv = (
            split_bytes + row_of(problem.dk, b, start, g),
            split_bytes + row_of(problem.dv, b, start, g),
        )
        add_rows(dk, problem.dk.time_bytes, dk_block, row_bytes, keys, head_width, 1 / LOG2_E)
        add_rows(dv, problem.dv.time_bytes, dv_block, row_bytes, keys, head_width, 1.0)
    for i in range(first, end, QUERY_BLOCK):
        state = states + (i - first) // QUERY_BLOCK * state_bytes
        _finish(problem, b, h, i, min(QUERY_BLOCK, end - i), state)


@inline
def _begin(problem, b, h, i, count, state):
    """Transpose ``count`` queries and their dy into lanes, scaled, and back; initialise their state."""
    head_width, row_bytes = problem.head_width, 4 * padded_width(problem.head_width)
    q_lanes, dy_lanes, dq_lanes, q_rows, dy_rows, deltas, factors, visible_counts, _ = _state_layout(
        state, head_width
    )
    _, peak = statistics_of(problem, b, h, i)
    store_visible_counts(problem, b, i, QUERY_BLOCK, visible_counts)
    q = row_of(problem.q, b, i, h)
    transpose_in(q_lanes, QUERY_BLOCK, q, problem.q.time_bytes, count, head_width)
    fill(factors, QUERY_BLOCK, problem.scale * LOG2_E)
    scale_lanes(q_lanes, head_width, QUERY_BLOCK, factors)
    transpose_out(q_rows, row_bytes, QUERY_BLOCK, padded_width(head_width), q_lanes, QUERY_BLOCK)
    dy = row_of(problem.dy, b, i, h)
    transpose_in(dy_lanes, QUERY_BLOCK, dy, problem.dy.time_bytes, count, head_width)
    y = row_of(problem.y, b, i, h)
    transpose_in(dq_lanes, QUERY_BLOCK, y, problem.y.time_bytes, count, head_width)  # y, for delta only
    _compute_deltas(deltas, factors, dy_lanes, dq_lanes, head_width, peak, problem.keep_scale)
    scale_lanes(dy_lanes, head_width, QUERY_BLOCK, factors)
    transpose_out(dy_rows, row_bytes, QUERY_BLOCK, padded_width(head_width), dy_lanes, QUERY_BLOCK)
    fill(dq_lanes, padded_width(head_width) * QUERY_BLOCK, 0.0)


@inline
def _differentiate_block(problem, b, h, i, count, start, state, scratch):
    """Add to dq of ``count`` queries, and to dk and dv of a block of keys, what this pair contributes."""
    head_width = problem.head_width
    fewest, most = count_visible(problem, b, i), count_visible(problem, b, i + count - 1)
    keys = min(KEY_BLOCK, most - start)
    if keys <= 0:
        return
    scores, dscores, bias, k_block, v_block, dk_block, dv_block, ones, _ = _key_block_layout(
        scratch, head_width
    )
    q_lanes, dy_lanes, dq_lanes, q_rows, dy_rows, deltas, _, visible_counts, _ = _state_layout(
        state, head_width
    )
    largest, _ = statistics_of(problem, b, h, i)

    for lane in range(0, count, COLUMNS):
        visible_keys = min(keys, count_visible(problem, b, i + min(lane + COLUMNS, count) - 1) - start)
        multiply_rows_by_lanes(scores, QUERY_BLOCK, lane, k_block, visible_keys, q_lanes, head_width)
        multiply_rows_by_lanes(dscores, QUERY_BLOCK, lane, v_block, visible_keys, dy_lanes, head_width)

    if problem.bias.address:
        add_bias(problem, b, h, i, count, start, keys, scores, QUERY_BLOCK, bias)
    rows = round_up(keys, ROWS)  # of scores that are computed, and that _add_sums adds up
    if start + rows > fewest:
        hide(scores, QUERY_BLOCK, start, max(0, fewest - start), rows, visible_counts)

    for lane in range(0, count, COLUMNS):
        visible_keys = min(keys, count_visible(problem, b, i + min(lane + COLUMNS, count) - 1) - start)
        if problem.threshold:
            _compute_dscores_dropped(
                problem, b, h, i, start, scores, dscores, lane, visible_keys, largest, deltas
            )
        else:
            _compute_dscores(scores, dscores, lane, visible_keys, largest, deltas)
        if visible_keys > 0:
            add_weighted_rows(dq_lanes, QUERY_BLOCK, lane, k_block, visible_keys, dscores, head_width, ones)

    _add_sums(problem, b, i, start, dv_block, scores, count, keys, dy_rows, ones)
    _add_sums(problem, b, i, start, dk_block, dscores, count, keys, q_rows, ones)


@inline
def _finish(problem, b, h, i, count, state):
    """Add to ``dq`` of ``count`` queries, transposed by way of the memory that held their q in rows."""
    head_width, row_bytes = problem.head_width, 4 * padded_width(problem.head_width)
    _, _, dq_lanes, dq_rows, _, _, _, _, _ = _state_layout(state, head_width)
    transpose_out(dq_rows, row_bytes, QUERY_BLOCK, padded_width(head_width), dq_lanes, QUERY_BLOCK)
    dq = row_of(problem.dq, b, i, h)
    add_rows(dq, problem.dq.time_bytes, dq_rows, row_bytes, count, head_width, problem.scale)


@inline
def _compute_deltas(deltas, factors, dy_lanes, y_lanes, head_width, peak, keep_scale):
    """Write delta · peak to ``deltas``, and what dy must be multiplied by to ``factors``, lane by lane."""
    for lane_bytes in range(0, 4 * QUERY_BLOCK, VECTOR_BYTES):
        total = splat(0.0)
        for row_bytes in range(0, 4 * QUERY_BLOCK * head_width, 4 * QUERY_BLOCK):
            dy, y = load(dy_lanes + row_bytes + lane_bytes), load(y_lanes + row_bytes + lane_bytes)
            total = fused(dy, y, total)
        share = load(peak + lane_bytes)
        store(deltas + lane_bytes, total * share)
        store(factors + lane_bytes, share * splat(keep_scale))


@inline
def _compute_dscores(scores, dscores, first_lane, keys, largest, deltas):
    """Turn scores into e, and dP into e · (dP − delta), for COLUMNS lanes from ``first_lane`` on."""
    row_bytes = 4 * QUERY_BLOCK
    for lane_bytes in range(4 * first_lane, 4 * (first_lane + COLUMNS), VECTOR_BYTES):
        top, delta = load(largest + lane_bytes), load(deltas + lane_bytes)
        for offset_bytes in range(lane_bytes, lane_bytes + row_bytes * round_up(keys, ROWS), row_bytes):
            e = exp2(load(scores + offset_bytes) - top)
            store(scores + offset_bytes, e)
            store(dscores + offset_bytes, e * (load(dscores + offset_bytes) - delta))


@inline
def _compute_dscores_dropped(problem, b, h, first, start, scores, dscores, first_lane, keys, largest, deltas):
    """Do the same under dropout: where an entry was dropped dP = 0, and it contributes nothing to dv."""
    threshold, zero = words(problem.threshold), splat(0.0)
    for lane in range(first_lane, first_lane + COLUMNS, LANES):
        top, delta = load(largest + 4 * lane), load(deltas + 4 * lane)
        for j in range(0, round_up(keys, ROWS), 4):
            offset_bytes = 4 * (j * QUERY_BLOCK + lane)
            for word in random_words(problem, b, h, first + lane, start + j):
                keep = word >= threshold
                e = exp2(load(scores + offset_bytes) - top)
                store(scores + offset_bytes, where(keep, e, zero))
                dp = where(keep, load(dscores + offset_bytes), zero)
                store(dscores + offset_bytes, e * (dp - delta))
                offset_bytes += 4 * QUERY_BLOCK


@inline
def _add_sums(problem, b, i, start, sums, weights, count, keys, rows_address, ones):
    """Add, for each key of a block, the sum of the rows of queries at ``rows_address``, times ``weights``.

    For each ROWS keys, queries are skipped that see none of them.
    """
    lane, row_bytes = 0, 4 * padded_width(problem.head_width)
    for j in range(0, keys, ROWS):
        while count_visible(problem, b, i + lane) <= start + j:
            lane += 1
        target, left = sums + row_bytes * j, weights + 4 * QUERY_BLOCK * j
        add_lanes_times_rows(
            target, row_bytes, left, QUERY_BLOCK, lane, ROWS, rows_address, count, problem.head_width, ones
        )
