"""What forward and backward of the fused attention share: moving rows, products, masks, bias and dropout.

Scores and what comes of them stand transposed: a row for each key of a block, a lane for each query. So the
softmax of a query runs down its lane, and maxima and sums are taken for W queries at once.
"""

from minitransformer.functional.attention import INVISIBLE
from minitransformer.functional.philox import MULTIPLIERS, WEYL
from minitransformer.kernels.cpu.compiling import inlined
from minitransformer.kernels.cpu.problem import padded, rounded_up, row_of, seen_by
from minitransformer.kernels.cpu.products import ROWS, product, transpose
from minitransformer.kernels.cpu.vectors import (
    BYTES,
    WIDTH,
    fused,
    high,
    lane_numbers,
    load,
    load_first,
    load_words,
    longs,
    low,
    product_of_low,
    splat,
    store,
    store_first,
    store_word,
    where,
    words,
)

KEYS = 64  # a block: 64 rows of K and of V, 64 floats wide, fill the first-level cache of 32 KiB
PAIR = 2 * WIDTH  # the columns of one ``product``
HIDDEN = -3e38  # the score of what is not seen: below all that a visible bias can make, yet finite
LOG2_E = 1.4426950408889634  # scores are kept in units of log 2, where exp is exp2


@inlined
def note_seen(problem, b, first, lanes, seen):
    """Write ``seen_by`` of ``lanes`` queries to ``seen``."""
    for lane in range(lanes):
        store_word(seen + 4 * lane, seen_by(problem, b, first + lane))


@inlined
def fill(address, count, value):
    """Write ``value`` to ``count`` floats, in whole vectors."""
    for place in range(address, address + 4 * count, BYTES):
        store(place, splat(value))


@inlined
def transpose_in(out, lanes, x, stride, rows, width):
    """Write ``rows`` ≤ ``lanes`` rows at ``x`` to the lanes of ``out``, padded with zeros."""
    for column in range(0, width, WIDTH):
        for row in range(0, lanes, WIDTH):
            place, origin = out + 4 * (column * lanes + row), x + row * stride + 4 * column
            transpose(place, 4 * lanes, WIDTH, WIDTH, origin, stride, rows - row, width - column)


@inlined
def transpose_out(out, stride, rows, width, x, lanes):
    """Write the first ``rows`` lanes of ``x`` to rows at ``out``."""
    for row in range(0, rows, WIDTH):
        for column in range(0, width, WIDTH):
            place, origin = out + row * stride + 4 * column, x + 4 * (column * lanes + row)
            transpose(place, stride, rows - row, width - column, origin, 4 * lanes, WIDTH, WIDTH)


@inlined
def pack(out, x, stride, rows, width):
    """Copy ``rows`` rows at ``x`` next to each other, ``padded``; fill up with zeros, to a multiple of ROWS.

    Where they lie, a power of two or so apart, a cache can't hold 64 of them at a time; and each may be in
    another page of memory.
    """
    size = 4 * padded(width)
    for row in range(rounded_up(rows, ROWS)):
        for column in range(0, padded(width), WIDTH):
            count = width - column if row < rows else 0
            store(out + row * size + 4 * column, load_first(x + row * stride + 4 * column, count))


@inlined
def add_rows(out, stride, x, x_stride, rows, width, factor):
    """Add ``factor`` times ``rows`` rows at ``x`` to those at ``out``."""
    for row in range(rows):
        for column in range(0, 4 * width, BYTES):
            place, count = out + row * stride + column, width - column // 4
            total = fused(splat(factor), load(x + row * x_stride + column), load_first(place, count))
            store_first(place, total, count)


@inlined
def scale_lanes(x, rows, lanes, factors):
    """Multiply each lane of ``rows`` rows by its own factor."""
    for column in range(0, 4 * lanes, BYTES):
        factor = load(factors + column)
        for place in range(x + column, x + column + 4 * lanes * rows, 4 * lanes):
            store(place, load(place) * factor)


@inlined
def rows_times_lanes(out, lanes, column, x, rows, y, width):
    """Compute the products of ``rows`` rows packed at ``x`` with PAIR lanes of y, from ``column`` on.

    As many more as make a multiple of ROWS are computed with them.
    """
    stride = 4 * padded(width)
    for row in range(0, rows, ROWS):
        place, left = out + 4 * (row * lanes + column), x + row * stride
        product(2, place, 4 * lanes, left, stride, 4, y + 4 * column, 4 * lanes, width, None)


@inlined
def add_mixture(out, lanes, column, x, rows, weights, width, rescale):
    """Add to PAIR lanes from ``column`` on the sum of ``rows`` rows packed at ``x``, weighted by the lane.

    What ``out`` (width, lanes) held is multiplied by ``rescale`` first, lane by lane.
    """
    stride = 4 * padded(width)
    for k in range(0, width, ROWS):
        place, left = out + 4 * (k * lanes + column), x + 4 * k
        right, factors = weights + 4 * column, rescale + 4 * column
        product(2, place, 4 * lanes, left, 4, stride, right, 4 * lanes, rows, factors)


@inlined
def add_lanes_times_rows(out, stride, weights, lanes, first, rows, x, depth, width, ones):
    """Add to ``rows`` rows sums of rows at ``x``, weighted by lanes ``first`` to ``depth`` − 1 of a row."""
    for column in range(0, width, PAIR):
        for row in range(0, rows, ROWS):
            place, left = out + row * stride + 4 * column, weights + 4 * (row * lanes + first)
            right = x + first * stride + 4 * column
            if width - column > WIDTH:
                product(2, place, stride, left, 4 * lanes, 4, right, stride, depth - first, ones)
            else:
                product(1, place, stride, left, 4 * lanes, 4, right, stride, depth - first, ones)


@inlined
def add_bias(problem, b, h, first, count, start, keys, scores, lanes, scratch):
    """Add the bias of ``count`` queries and ``keys`` keys to a block of scores, and hide what it hides."""
    origin = row_of(problem.bias, b, first, h) + 4 * start
    transpose_in(scratch, lanes, origin, problem.bias.time, count, keys)
    invisible, unit, hidden = splat(INVISIBLE), splat(LOG2_E), splat(HIDDEN)
    for offset in range(0, 4 * lanes * keys, BYTES):
        bias = load(scratch + offset)
        score = fused(bias, unit, load(scores + offset))
        store(scores + offset, where(bias <= invisible, hidden, score))


@inlined
def hide(scores, lanes, start, row, rows, seen):
    """Hide in rows ``row`` … ``rows`` − 1 of a block, whose first key is ``start``, what no lane sees."""
    hidden = splat(HIDDEN)
    for column in range(0, 4 * lanes, BYTES):
        until = load_words(seen + column)
        for j in range(row, rows):
            place = scores + 4 * lanes * j + column
            store(place, where(until > words(start + j), load(place), hidden))


@inlined
def random_words(problem, b, h, i, j):
    """Return Philox's four words for W queries from i on: for the keys j, j + 1, j + 2 and j + 3.

    Bit for bit ``functional.philox.random_words`` at (b, h, i, j), for j a multiple of 4. Each word has 64
    bits for its products; what comes to stand in the upper half is never looked at.
    """
    x0, x1 = longs(j // 4), longs(lane_numbers() + words(i))
    x2, x3 = longs(b * problem.heads + h), longs(problem.stream)
    key0, key1 = problem.key0, problem.key1
    for _ in range(10):
        product0 = product_of_low(x0, longs(MULTIPLIERS[0]))
        product1 = product_of_low(x2, longs(MULTIPLIERS[1]))
        x0, x1 = high(product1) ^ x1 ^ longs(key0), product1
        x2, x3 = high(product0) ^ x3 ^ longs(key1), product0
        key0 += WEYL[0]
        key1 += WEYL[1]
    return low(x0), low(x1), low(x2), low(x3)


@inlined
def drop(problem, b, h, first, start, weights, lanes, keys):
    """Put zeros into a block of weights where dropout drops."""
    threshold, zero = words(problem.threshold), splat(0.0)
    for lane in range(0, lanes, WIDTH):
        for j in range(0, keys, 4):
            place = weights + 4 * (j * lanes + lane)
            for number, word in enumerate(random_words(problem, b, h, first + lane, start + j)):
                here = place + 4 * lanes * number
                store(here, where(word >= threshold, load(here), zero))
