"""The backward pass of fused attention: FlashAttention's (arXiv 2205.14135, algorithm 4) for a processor.

Probabilities are made again from the scores and the two numbers that the forward saved for each query. With
s the scores in units of log 2, largest and peak as saved, and D = Σ dy·y of a query:

    e = 2^(s − largest),  P = e · peak,  dP = dropout(v dy),  dscores = P · (dP − D)

``peak`` and dropout's 1/(1 − rate) are multiplied into dy and D once for each query, so that the inner loop
is dscores = e · (dP − D).
"""

from numba import carray
from numba.extending import register_jitable

from minitransformer.kernels.cpu.compiling import inlined, kernel
from minitransformer.kernels.cpu.problem import (
    PROBLEM,
    next_task,
    padded,
    rounded_up,
    row_of,
    scratch_of,
    seen_by,
    statistics_of,
)
from minitransformer.kernels.cpu.products import ROWS
from minitransformer.kernels.cpu.tiles import (
    KEYS,
    LOG2_E,
    PAIR,
    add_bias,
    add_lanes_times_rows,
    add_mixture,
    add_rows,
    fill,
    hide,
    note_seen,
    pack,
    random_words,
    rows_times_lanes,
    scale_lanes,
    transpose_in,
    transpose_out,
)
from minitransformer.kernels.cpu.vectors import BYTES, WIDTH, exp2, fused, load, splat, store, where, words

GROUP = 2 * PAIR  # queries whose scores exist at a time: the depth of the products for dk and dv
QUERIES = 4 * GROUP  # the most queries of a tile, for which a block of keys is brought near but once


def scratch_floats(width, tile):
    """Return how many floats of scratch memory a worker needs."""
    groups, step = _places_of_block(0, width)[-1], _places_of_group(0, width)[-1]
    return (groups + tile // GROUP * step) // 4


@register_jitable
def _places_of_block(scratch, width):
    """Return where a block has scores, dscores, bias, K, V, dk, dv and ones; and where groups begin."""
    scores = scratch
    dscores = scores + 4 * KEYS * GROUP
    bias = dscores + 4 * KEYS * GROUP
    k = bias + 4 * KEYS * GROUP
    v = k + 4 * KEYS * padded(width)
    dk = v + 4 * KEYS * padded(width)
    dv = dk + 4 * KEYS * padded(width)
    ones = dv + 4 * KEYS * padded(width)
    return scores, dscores, bias, k, v, dk, dv, ones, ones + 4 * GROUP


@register_jitable
def _places_of_group(kept, width):
    """Return where a group of queries has what is kept from block to block; and its end.

    That is q, dy and dq in lanes, q and dy in rows, D, factors and who sees what.
    """
    size = 4 * padded(width) * GROUP
    q, dy, dq = kept, kept + size, kept + 2 * size
    q_rows, dy_rows = kept + 3 * size, kept + 4 * size
    offsets = kept + 5 * size
    factors = offsets + 4 * GROUP
    seen = factors + 4 * GROUP
    return q, dy, dq, q_rows, dy_rows, offsets, factors, seen, seen + 4 * GROUP


@kernel(PROBLEM, seconds=8)
def attention_backward(problems, worker):
    """Add to dq, and to dk and dv, of which there are ``splits`` copies, ``split_bytes`` apart.

    A task is a key/value head and its share of the tiles of queries: no two tasks add to one place, so the
    result does not depend on who works when.
    """
    problem = carray(problems, (1,))[0]
    scratch = scratch_of(problem, worker)
    tiles, splits = (problem.queries + problem.tile - 1) // problem.tile, problem.splits
    per_group = problem.heads // problem.groups
    task = next_task(problem)
    while task < splits * problem.batch * problem.groups:
        split, g, b = task % splits, task // splits % problem.groups, task // splits // problem.groups
        for tile in range(tiles):
            turn = tile % (2 * splits)  # 0 1 2 2 1 0 …: causal tiles grow, and so each split gets as much
            if split == min(turn, 2 * splits - 1 - turn):
                first = tile * problem.tile
                end = min(first + problem.tile, problem.queries)
                for h in range(g * per_group, (g + 1) * per_group):
                    _differentiate(problem, b, h, g, first, end, split * problem.split_bytes, scratch)
        task = next_task(problem)
    return 0


@inlined
def _differentiate(problem, b, h, g, first, end, split, scratch):
    """Add to dq of the queries ``first`` … ``end`` − 1, and to dk and dv what these queries contribute."""
    width, stride = problem.width, 4 * padded(problem.width)
    _, _, _, k, v, dk_here, dv_here, ones, groups = _places_of_block(scratch, width)
    step = _places_of_group(0, width)[-1]
    fill(ones, GROUP, 1.0)
    for i in range(first, end, GROUP):
        _begin(problem, b, h, i, min(GROUP, end - i), groups + (i - first) // GROUP * step)
    most = seen_by(problem, b, end - 1)
    for start in range(0, most, KEYS):
        keys = min(KEYS, most - start)
        pack(k, row_of(problem.k, b, start, g), problem.k.time, keys, width)
        pack(v, row_of(problem.v, b, start, g), problem.v.time, keys, width)
        fill(dk_here, KEYS * padded(width), 0.0)
        fill(dv_here, KEYS * padded(width), 0.0)
        for i in range(first, end, GROUP):
            kept = groups + (i - first) // GROUP * step
            _differentiate_block(problem, b, h, i, min(GROUP, end - i), start, kept, scratch)
        dk, dv = split + row_of(problem.dk, b, start, g), split + row_of(problem.dv, b, start, g)
        add_rows(dk, problem.dk.time, dk_here, stride, keys, width, 1 / LOG2_E)
        add_rows(dv, problem.dv.time, dv_here, stride, keys, width, 1.0)
    for i in range(first, end, GROUP):
        _finish(problem, b, h, i, min(GROUP, end - i), groups + (i - first) // GROUP * step)


@inlined
def _begin(problem, b, h, i, count, kept):
    """Bring ``count`` queries and what their ``dy`` says into lanes, scaled, and back into rows."""
    width, stride = problem.width, 4 * padded(problem.width)
    q, dy, dq, q_rows, dy_rows, offsets, factors, seen, _ = _places_of_group(kept, width)
    _, peak = statistics_of(problem, b, h, i)
    note_seen(problem, b, i, GROUP, seen)
    transpose_in(q, GROUP, row_of(problem.q, b, i, h), problem.q.time, count, width)
    fill(factors, GROUP, problem.scale * LOG2_E)
    scale_lanes(q, width, GROUP, factors)
    transpose_out(q_rows, stride, GROUP, padded(width), q, GROUP)
    transpose_in(dy, GROUP, row_of(problem.dy, b, i, h), problem.dy.time, count, width)
    transpose_in(dq, GROUP, row_of(problem.y, b, i, h), problem.y.time, count, width)  # y, but for D alone
    _offsets(offsets, factors, dy, dq, width, peak, problem.keep_scale)
    scale_lanes(dy, width, GROUP, factors)
    transpose_out(dy_rows, stride, GROUP, padded(width), dy, GROUP)
    fill(dq, padded(width) * GROUP, 0.0)


@inlined
def _differentiate_block(problem, b, h, i, count, start, kept, scratch):
    """Add to dq of ``count`` queries, and to dk and dv of a block of keys, what they give each other."""
    width = problem.width
    least, most = seen_by(problem, b, i), seen_by(problem, b, i + count - 1)
    block = min(KEYS, most - start)
    if block <= 0:
        return
    scores, dscores, bias, k, v, dk, dv, ones, _ = _places_of_block(scratch, width)
    q, dy, dq, q_rows, dy_rows, offsets, _, seen, _ = _places_of_group(kept, width)
    largest, _ = statistics_of(problem, b, h, i)

    for column in range(0, count, PAIR):
        keys = min(block, seen_by(problem, b, i + min(column + PAIR, count) - 1) - start)
        rows_times_lanes(scores, GROUP, column, k, keys, q, width)
        rows_times_lanes(dscores, GROUP, column, v, keys, dy, width)

    if problem.bias.address:
        add_bias(problem, b, h, i, count, start, block, scores, GROUP, bias)
    rows = rounded_up(block, ROWS)  # what the products compute and _add_sums sums up
    if start + rows > least:
        hide(scores, GROUP, start, max(0, least - start), rows, seen)

    for column in range(0, count, PAIR):
        keys = min(block, seen_by(problem, b, i + min(column + PAIR, count) - 1) - start)
        if problem.threshold:
            _dscores_dropped(problem, b, h, i, start, scores, dscores, column, keys, largest, offsets)
        else:
            _dscores(scores, dscores, column, keys, largest, offsets)
        if keys > 0:
            add_mixture(dq, GROUP, column, k, keys, dscores, width, ones)

    _add_sums(problem, b, i, start, dv, scores, count, block, dy_rows, ones)
    _add_sums(problem, b, i, start, dk, dscores, count, block, q_rows, ones)


@inlined
def _finish(problem, b, h, i, count, kept):
    """Add to ``dq`` of ``count`` queries, by way of the memory that held their q in rows."""
    width, stride = problem.width, 4 * padded(problem.width)
    _, _, dq, rows, _, _, _, _, _ = _places_of_group(kept, width)
    transpose_out(rows, stride, GROUP, padded(width), dq, GROUP)
    add_rows(row_of(problem.dq, b, i, h), problem.dq.time, rows, stride, count, width, problem.scale)


@inlined
def _offsets(offsets, factors, dy, y, width, peak, keep_scale):
    """Write D · peak to ``offsets``, and what dy must be multiplied by to ``factors``, lane by lane."""
    for column in range(0, 4 * GROUP, BYTES):
        total = splat(0.0)
        for row in range(0, 4 * GROUP * width, 4 * GROUP):
            total = fused(load(dy + row + column), load(y + row + column), total)
        share = load(peak + column)
        store(offsets + column, total * share)
        store(factors + column, share * splat(keep_scale))


@inlined
def _dscores(scores, dscores, column, keys, largest, offsets):
    """Turn scores into e, and dP into e · (dP − D), for PAIR lanes from ``column`` on."""
    for lane in range(4 * column, 4 * (column + PAIR), BYTES):
        top, offset = load(largest + lane), load(offsets + lane)
        for place in range(lane, lane + 4 * GROUP * rounded_up(keys, ROWS), 4 * GROUP):
            e = exp2(load(scores + place) - top)
            store(scores + place, e)
            store(dscores + place, e * (load(dscores + place) - offset))


@inlined
def _dscores_dropped(problem, b, h, first, start, scores, dscores, column, keys, largest, offsets):
    """Do the same under dropout: what was dropped has dP = 0, and gives nothing to dv."""
    threshold, zero = words(problem.threshold), splat(0.0)
    for lane in range(column, column + PAIR, WIDTH):
        top, offset = load(largest + 4 * lane), load(offsets + 4 * lane)
        for j in range(0, rounded_up(keys, ROWS), 4):
            place = 4 * (j * GROUP + lane)
            for word in random_words(problem, b, h, first + lane, start + j):
                keep = word >= threshold
                e = exp2(load(scores + place) - top)
                store(scores + place, where(keep, e, zero))
                store(dscores + place, e * (where(keep, load(dscores + place), zero) - offset))
                place += 4 * GROUP


@inlined
def _add_sums(problem, b, i, start, sums, weights, count, block, rows, ones):
    """Add, for each key of a block, the sum of ``rows`` of its queries, weighted by ``weights``.

    Queries that see none of ROWS keys are passed over.
    """
    lane, stride = 0, 4 * padded(problem.width)
    for key in range(0, block, ROWS):
        while seen_by(problem, b, i + lane) <= start + key:
            lane += 1
        place, left = sums + stride * key, weights + 4 * GROUP * key
        add_lanes_times_rows(place, stride, left, GROUP, lane, ROWS, rows, count, problem.width, ones)
