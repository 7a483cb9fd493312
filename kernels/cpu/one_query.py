"""Attention of a single query, as in decoding with a cache: what counts is to read K and V once, and fast.

There are no queries to fill the lanes. So the lanes are the head's width in the two products, and keys in the
softmax between them. A key is read for all heads before the next key, for that is how they lie in memory.
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
)
from minitransformer.kernels.cpu.tiles import HIDDEN, INVISIBLE, KEYS, LOG2_E, fill
from minitransformer.kernels.cpu.vectors import (
    BYTES,
    WIDTH,
    exp2,
    fused,
    largest_of,
    load,
    load_first,
    load_one,
    maximum,
    splat,
    store,
    store_first,
    store_one,
    sum_of,
    where,
)

TOGETHER = 4  # rows of V for each time that the mixture is read and written


def scratch_floats(heads, width):
    """Return how many floats of scratch memory a worker needs."""
    return heads * _places(0, width)[-1] // 4


@register_jitable
def _places(kept, width):
    """Return where a head has its query, mixture, scores of a block, total and maximum; and its end."""
    query = kept
    mixture = query + 4 * padded(width)
    scores = mixture + 4 * padded(width)
    total = scores + 4 * KEYS
    largest = total + BYTES
    return query, mixture, scores, total, largest, largest + BYTES


@kernel(PROBLEM, seconds=3)
def attention_of_one_query(problems, worker):
    """Compute ``y`` where there is one query and no dropout. Nothing is saved.

    A task is a row of the batch, and one of ``splits`` parts of its key/value heads.
    """
    problem = carray(problems, (1,))[0]
    scratch, splits = scratch_of(problem, worker), problem.splits
    task = next_task(problem)
    while task < problem.batch * splits:
        b, split = task // splits, task % splits
        _attend(problem, b, split * problem.groups // splits, (split + 1) * problem.groups // splits, scratch)
        task = next_task(problem)
    return 0


@inlined
def _attend(problem, b, first_group, last_group, scratch):
    """Compute the heads of the groups ``first_group`` … ``last_group`` − 1 in one row of ``y``."""
    width, per_group = problem.width, problem.heads // problem.groups
    first, last = first_group * per_group, last_group * per_group
    step = _places(0, width)[-1]
    for h in range(first, last):
        _begin(row_of(problem.q, b, 0, h), scratch + (h - first) * step, problem.scale, width)
    most = seen_by(problem, b, 0)
    for start in range(0, most, KEYS):
        keys = min(KEYS, most - start)
        _scores(problem, b, first_group, last_group, start, keys, scratch)
        for h in range(first, last):
            _weights(problem, b, h, start, keys, scratch + (h - first) * step)
        _add_values(problem, b, first_group, last_group, start, keys, scratch)
    for h in range(first, last):
        _finish(row_of(problem.y, b, 0, h), scratch + (h - first) * step, width)


@inlined
def _begin(q, kept, scale, width):
    """Bring a head's query near, scaled, with nothing seen yet."""
    query, mixture, _, total, largest, _ = _places(kept, width)
    for column in range(0, width, WIDTH):
        store(query + 4 * column, _load_row(q, column, width) * splat(scale * LOG2_E))
    fill(mixture, padded(width), 0.0)
    fill(total, WIDTH, 0.0)
    fill(largest, WIDTH, HIDDEN)


@inlined
def _scores(problem, b, first_group, last_group, start, keys, scratch):
    """Compute the scores of a block of keys, for all heads of one key before the next: in memory's order."""
    width, step = problem.width, _places(0, problem.width)[-1]
    for j in range(keys):
        k, kept = row_of(problem.k, b, start + j, first_group), scratch
        for _ in range(first_group, last_group):
            for _ in range(problem.heads // problem.groups):
                query, _, scores, _, _, _ = _places(kept, width)
                store_one(scores + 4 * j, _product(k, query, width))
                kept += step
            k += problem.k.head


@inlined
def _weights(problem, b, h, start, keys, kept):
    """Turn a head's scores of a block into weights, and scale the mixture down to them."""
    _, mixture, scores, total, largest, _ = _places(kept, problem.width)
    _hide_rest(scores, keys)
    if problem.bias.address:
        _add_bias(scores, row_of(problem.bias, b, 0, h) + 4 * start, keys)
    rescale = _exponentials(scores, keys, largest, total)
    for place in range(mixture, mixture + 4 * problem.width, BYTES):
        store(place, load(place) * rescale)


@inlined
def _add_values(problem, b, first_group, last_group, start, keys, scratch):
    """Add the weighted values of a block to the mixtures of all heads, again in memory's order."""
    width, step = problem.width, _places(0, problem.width)[-1]
    for j in range(0, keys, TOGETHER):
        v, kept = row_of(problem.v, b, start + j, first_group), scratch
        for _ in range(first_group, last_group):
            for _ in range(problem.heads // problem.groups):
                _, mixture, scores, _, _, _ = _places(kept, width)
                _add_rows(mixture, v, problem.v.time, scores + 4 * j, min(TOGETHER, keys - j), width)
                kept += step
            v += problem.v.head


@inlined
def _finish(y, kept, width):
    """Write a head's row of ``y``: zeros if nothing was seen."""
    _, mixture, _, total, largest, _ = _places(kept, width)
    share = 0.0 if largest_of(load(largest)) <= HIDDEN else 1.0 / sum_of(load(total))
    for column in range(0, width, WIDTH):
        store_first(y + 4 * column, load(mixture + 4 * column) * splat(share), width - column)


@inlined
def _product(row, query, width):
    """Return the score of a key."""
    product = splat(0.0)
    for column in range(0, width, WIDTH):
        product = fused(_load_row(row, column, width), load(query + 4 * column), product)
    return sum_of(product)


@inlined
def _hide_rest(scores, keys):
    """Hide what pads the last vector of scores."""
    place, count = scores + 4 * (rounded_up(keys, WIDTH) - WIDTH), (keys - 1) % WIDTH + 1
    rest = load_first(place, count)
    store(place, splat(HIDDEN))
    store_first(place, rest, count)


@inlined
def _exponentials(scores, keys, largest, total):
    """Turn a block of scores into 2^(score − largest so far); return what rescales the mixture."""
    before = load(largest)
    now = before
    for place in range(scores, scores + 4 * keys, BYTES):
        now = maximum(now, load(place))
    now = splat(largest_of(now))
    store(largest, now)
    rescale = exp2(before - now)
    sum_here = load(total) * rescale
    for place in range(scores, scores + 4 * keys, BYTES):
        weights = exp2(load(place) - now)
        store(place, weights)
        sum_here = sum_here + weights
    store(total, sum_here)
    return rescale


@inlined
def _add_bias(scores, bias, keys):
    """Add the bias to the scores of a block of keys, and hide what it hides."""
    for j in range(0, keys, WIDTH):
        part, before = load_first(bias + 4 * j, keys - j), load(scores + 4 * j)
        score = fused(part, splat(LOG2_E), before)
        hidden = where(part <= splat(INVISIBLE), splat(HIDDEN), score)
        store(scores + 4 * j, where(before <= splat(HIDDEN), before, hidden))


@inlined
def _add_rows(mixture, v, stride, weights, rows, width):
    """Add ``rows`` ≤ TOGETHER rows of V, weighted.

    In place of a missing row the last is taken once more, with the weight that pads the block: 0, or where
    nothing has been seen so far what is wiped out later.
    """
    for column in range(0, width, WIDTH):
        total = load(mixture + 4 * column)
        for row in range(TOGETHER):
            part = _load_row(v + min(row, rows - 1) * stride, column, width)
            total = fused(part, splat(load_one(weights + 4 * row)), total)
        store(mixture + 4 * column, total)


@inlined
def _load_row(row, column, width):
    """Return W floats of a row from ``column`` on, zeros beyond its end."""
    if column + WIDTH <= width:
        return load(row + 4 * column)
    return load_first(row + 4 * column, width - column)
