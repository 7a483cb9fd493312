"""Attention of a single query, as in decoding with a cache: its time is that of reading K and V once.

A single query cannot fill the lanes. So the lanes are a head's width in the two products, and keys in the
softmax between them. For each key all heads are computed before the next key, in the order of memory.
"""

from numba import carray
from numba.extending import register_jitable

from minitransformer.kernels.cpu.attention_problem import PROBLEM, count_visible, padded_width, row_of
from minitransformer.kernels.cpu.attention_tiles import HIDDEN, INVISIBLE, KEY_BLOCK, LOG2_E, fill
from minitransformer.kernels.cpu.compiling import inline, kernel
from minitransformer.kernels.cpu.records import round_up, scratch_of, take_task
from minitransformer.kernels.cpu.vectors import (
    LANES,
    VECTOR_BYTES,
    exp2,
    fused,
    load,
    load_first,
    load_one,
    max_lane,
    maximum,
    splat,
    store,
    store_first,
    store_one,
    sum_lanes,
    where,
)

VALUE_ROWS = 4  # rows of V added each time that the weighted sum is read and written


def scratch_floats(heads, head_width):
    """Return the number of floats of scratch memory that a worker needs."""
    return heads * _state_layout(0, head_width)[-1] // 4


@register_jitable
def _state_layout(state, head_width):
    """Return the addresses of a head's query, weighted sum, block of scores, total, maximum; and its end."""
    query = state
    weighted_sum = query + 4 * padded_width(head_width)
    scores = weighted_sum + 4 * padded_width(head_width)
    total = scores + 4 * KEY_BLOCK
    largest = total + VECTOR_BYTES
    return query, weighted_sum, scores, total, largest, largest + VECTOR_BYTES


@kernel(PROBLEM, seconds=3)
def attention_of_one_query(problems, worker):
    """Compute ``y`` where there is one query and no dropout. Nothing is saved.

    A task is a row of the batch, and one of ``splits`` parts of its key/value heads.
    """
    problem = carray(problems, (1,))[0]
    scratch, splits = scratch_of(problem, worker), problem.splits
    task = take_task(problem)
    while task < problem.batch * splits:
        b, split = task // splits, task % splits
        first, end = split * problem.kv_heads // splits, (split + 1) * problem.kv_heads // splits
        _attend(problem, b, first, end, scratch)
        task = take_task(problem)
    return 0


@inline
def _attend(problem, b, first_kv_head, end_kv_head, scratch):
    """Compute one row of ``y`` for the key/value heads ``first_kv_head`` … ``end_kv_head`` − 1."""
    head_width, group_size = problem.head_width, problem.heads // problem.kv_heads
    first, end = first_kv_head * group_size, end_kv_head * group_size
    state_bytes = _state_layout(0, head_width)[-1]
    for h in range(first, end):
        _begin(row_of(problem.q, b, 0, h), scratch + (h - first) * state_bytes, problem.scale, head_width)
    visible_count = count_visible(problem, b, 0)
    for start in range(0, visible_count, KEY_BLOCK):
        keys = min(KEY_BLOCK, visible_count - start)
        _compute_scores(problem, b, first_kv_head, end_kv_head, start, keys, scratch)
        for h in range(first, end):
            _compute_weights(problem, b, h, start, keys, scratch + (h - first) * state_bytes)
        _add_values(problem, b, first_kv_head, end_kv_head, start, keys, scratch)
    for h in range(first, end):
        _finish(row_of(problem.y, b, 0, h), scratch + (h - first) * state_bytes, head_width)


@inline
def _begin(q, state, scale, head_width):
    """Copy a head's query, scaled, and initialise its state."""
    query, weighted_sum, _, total, largest, _ = _state_layout(state, head_width)
    for column in range(0, head_width, LANES):
        store(query + 4 * column, _load_row(q, column, head_width) * splat(scale * LOG2_E))
    fill(weighted_sum, padded_width(head_width), 0.0)
    fill(total, LANES, 0.0)
    fill(largest, LANES, HIDDEN)


@inline
def _compute_scores(problem, b, first_kv_head, end_kv_head, start, keys, scratch):
    """Compute the scores of a block of keys, for each key all heads, in the order of memory."""
    head_width, state_bytes = problem.head_width, _state_layout(0, problem.head_width)[-1]
    for j in range(keys):
        k, state = row_of(problem.k, b, start + j, first_kv_head), scratch
        for _ in range(first_kv_head, end_kv_head):
            for _ in range(problem.heads // problem.kv_heads):
                query, _, scores, _, _, _ = _state_layout(state, head_width)
                store_one(scores + 4 * j, _multiply(k, query, head_width))
                state += state_bytes
            k += problem.k.head_bytes


@inline
def _compute_weights(problem, b, h, start, keys, state):
    """Turn a head's scores of a block into weights, and scale down the weighted sum so far to match."""
    _, weighted_sum, scores, total, largest, _ = _state_layout(state, problem.head_width)
    _hide_rest(scores, keys)
    if problem.bias.address:
        _add_bias(scores, row_of(problem.bias, b, 0, h) + 4 * start, keys)
    rescale = _exponentiate(scores, keys, largest, total)
    for address in range(weighted_sum, weighted_sum + 4 * problem.head_width, VECTOR_BYTES):
        store(address, load(address) * rescale)


@inline
def _add_values(problem, b, first_kv_head, end_kv_head, start, keys, scratch):
    """Add the weighted values of a block to the sums of all heads, again in the order of memory."""
    head_width, state_bytes = problem.head_width, _state_layout(0, problem.head_width)[-1]
    for j in range(0, keys, VALUE_ROWS):
        v, state = row_of(problem.v, b, start + j, first_kv_head), scratch
        for _ in range(first_kv_head, end_kv_head):
            for _ in range(problem.heads // problem.kv_heads):
                _, weighted_sum, scores, _, _, _ = _state_layout(state, head_width)
                rows = min(VALUE_ROWS, keys - j)
                _add_rows(weighted_sum, v, problem.v.time_bytes, scores + 4 * j, rows, head_width)
                state += state_bytes
            v += problem.v.head_bytes


@inline
def _finish(y, state, head_width):
    """Write a head's row of ``y``: zeros if no key was visible."""
    _, weighted_sum, _, total, largest, _ = _state_layout(state, head_width)
    share = 0.0 if max_lane(load(largest)) <= HIDDEN else 1.0 / sum_lanes(load(total))
    for column in range(0, head_width, LANES):
        store_first(y + 4 * column, load(weighted_sum + 4 * column) * splat(share), head_width - column)


@inline
def _multiply(row, query, head_width):
    """Return the score of a key: the product of its row and the query."""
    product = splat(0.0)
    for column in range(0, head_width, LANES):
        product = fused(_load_row(row, column, head_width), load(query + 4 * column), product)
    return sum_lanes(product)


@inline
def _hide_rest(scores, keys):
    """Set the padding of the last vector of scores to HIDDEN."""
    address, count = scores + 4 * (round_up(keys, LANES) - LANES), (keys - 1) % LANES + 1
    rest = load_first(address, count)
    store(address, splat(HIDDEN))
    store_first(address, rest, count)


@inline
def _exponentiate(scores, keys, largest, total):
    """Turn a block of scores into 2^(score − largest so far); return the factor for the sum so far."""
    before = load(largest)
    now = before
    for address in range(scores, scores + 4 * keys, VECTOR_BYTES):
        now = maximum(now, load(address))
    now = splat(max_lane(now))
    store(largest, now)
    rescale = exp2(before - now)
    new_total = load(total) * rescale
    for address in range(scores, scores + 4 * keys, VECTOR_BYTES):
        weights = exp2(load(address) - now)
        store(address, weights)
        new_total = new_total + weights
    store(total, new_total)
    return rescale


@inline
def _add_bias(scores, bias, keys):
    """Add the bias to the scores of a block of keys; hide invisible keys."""
    for j in range(0, keys, LANES):
        part, before = load_first(bias + 4 * j, keys - j), load(scores + 4 * j)
        score = fused(part, splat(LOG2_E), before)
        hidden = where(part <= splat(INVISIBLE), splat(HIDDEN), score)
        store(scores + 4 * j, where(before <= splat(HIDDEN), before, hidden))


@inline
def _add_rows(weighted_sum, v, v_row_bytes, weights, rows, head_width):
    """Add ``rows`` ≤ VALUE_ROWS rows of V, weighted.

    For a missing row the last one is read again, with the weight of the block's padding: 0, or, as long as no
    key was visible, a weight whose contribution the next rescaling multiplies by 0.
    """
    for column in range(0, head_width, LANES):
        total = load(weighted_sum + 4 * column)
        for row in range(VALUE_ROWS):
            part = _load_row(v + min(row, rows - 1) * v_row_bytes, column, head_width)
            total = fused(part, splat(load_one(weights + 4 * row)), total)
        store(weighted_sum + 4 * column, total)


@inline
def _load_row(row, column, head_width):
    """Return LANES floats of a row from ``column`` on, zeros beyond its end."""
    if column + LANES <= head_width:
        return load(row + 4 * column)
    return load_first(row + 4 * column, head_width - column)
