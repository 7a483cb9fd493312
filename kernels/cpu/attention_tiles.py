"""What the forward and backward passes of fused attention share: copies, products, masks, bias and dropout.

Scores are transposed: a block of them is (keys, queries), with a row per key and a lane per query. So softmax
is elementwise across rows, for LANES queries at once, without reductions across lanes.

An array "in lanes" of a head's rows is likewise (head_width, queries), with a lane per query; "in rows" it is
(queries, padded_width).
"""

from minitransformer.functional.attention import INVISIBLE
from minitransformer.kernels.cpu.attention_problem import count_visible, padded_width, row_of
from minitransformer.kernels.cpu.compiling import inline
from minitransformer.kernels.cpu.philox import philox
from minitransformer.kernels.cpu.products import ROWS, product, transpose
from minitransformer.kernels.cpu.records import round_up
from minitransformer.kernels.cpu.vectors import (
    LANES,
    VECTOR_BYTES,
    fused,
    lane_numbers,
    load,
    load_first,
    load_words,
    longs,
    splat,
    store,
    store_first,
    store_word,
    where,
    words,
)

KEY_BLOCK = 64  # keys per block: as many rows of K and V, 64 floats wide, fill a first-level cache of 32 KiB
COLUMNS = 2 * LANES  # results per row of one ``product``
HIDDEN = -3e38  # the score of an invisible key: below any that a visible bias can make, yet finite
LOG2_E = 1.4426950408889634  # scores are kept in units of log 2, where exp is exp2


@inline
def store_visible_counts(problem, b, first, queries, visible_counts):
    """Write ``count_visible`` of ``queries`` queries to ``visible_counts``."""
    for lane in range(queries):
        store_word(visible_counts + 4 * lane, count_visible(problem, b, first + lane))


@inline
def fill(x, size, value):
    """Write ``value`` to ``size`` floats at ``x``, a multiple of LANES."""
    for address in range(x, x + 4 * size, VECTOR_BYTES):
        store(address, splat(value))


@inline
def transpose_in(out, queries, x, x_row_bytes, rows, head_width):
    """Write ``rows`` ≤ ``queries`` rows at ``x`` to the lanes of ``out``, padded with zeros."""
    for column in range(0, head_width, LANES):
        for row in range(0, queries, LANES):
            target, origin = out + 4 * (column * queries + row), x + row * x_row_bytes + 4 * column
            transpose(target, 4 * queries, LANES, LANES, origin, x_row_bytes, rows - row, head_width - column)


@inline
def transpose_out(out, out_row_bytes, rows, head_width, x, queries):
    """Write the first ``rows`` of ``queries`` lanes of ``x`` to rows at ``out``."""
    for row in range(0, rows, LANES):
        for column in range(0, head_width, LANES):
            target, origin = out + row * out_row_bytes + 4 * column, x + 4 * (column * queries + row)
            transpose(
                target, out_row_bytes, rows - row, head_width - column, origin, 4 * queries, LANES, LANES
            )


@inline
def pack(out, x, x_row_bytes, rows, head_width):
    """Copy ``rows`` rows at ``x`` to contiguous, padded rows; fill up with zeros to a multiple of ROWS rows.

    In the source array rows are often a power of two apart, so that a cache can't hold 64 of them at a time,
    and each may be in another page of memory.
    """
    row_bytes = 4 * padded_width(head_width)
    for row in range(round_up(rows, ROWS)):
        for column in range(0, padded_width(head_width), LANES):
            count = head_width - column if row < rows else 0
            store(out + row * row_bytes + 4 * column, load_first(x + row * x_row_bytes + 4 * column, count))


@inline
def add_rows(out, out_row_bytes, x, x_row_bytes, rows, head_width, factor):
    """Add ``factor`` times ``rows`` rows at ``x`` to those at ``out``."""
    for row in range(rows):
        for column_bytes in range(0, 4 * head_width, VECTOR_BYTES):
            target, count = out + row * out_row_bytes + column_bytes, head_width - column_bytes // 4
            addend = load(x + row * x_row_bytes + column_bytes)
            if count >= LANES:  # masked stores are slow on some processors
                store(target, fused(splat(factor), addend, load(target)))
            else:
                store_first(target, fused(splat(factor), addend, load_first(target, count)), count)


@inline
def scale_lanes(x, rows, queries, factors):
    """Multiply each of ``queries`` lanes of ``rows`` rows by its own factor."""
    for lane_bytes in range(0, 4 * queries, VECTOR_BYTES):
        factor = load(factors + lane_bytes)
        for address in range(x + lane_bytes, x + lane_bytes + 4 * queries * rows, 4 * queries):
            store(address, load(address) * factor)


@inline
def multiply_rows_by_lanes(out, queries, lane, x, rows, y, head_width):
    """Write x y, (rows, queries), for the COLUMNS lanes of y from ``lane`` on; x holds packed rows.

    The number of rows computed is rounded up to a multiple of ROWS.
    """
    row_bytes = 4 * padded_width(head_width)
    for row in range(0, rows, ROWS):
        target, left, right = out + 4 * (row * queries + lane), x + row * row_bytes, y + 4 * lane
        product(ROWS, 2, target, 4 * queries, left, row_bytes, 4, right, 4 * queries, head_width, None)


@inline
def add_weighted_rows(out, queries, lane, x, rows, weights, head_width, rescale):
    """Compute out · rescale + xᵀ weights for the COLUMNS lanes from ``lane`` on; x holds packed rows.

    ``out`` is (head_width, queries), ``weights`` (rows, queries), ``rescale`` (queries,).
    """
    row_bytes = 4 * padded_width(head_width)
    for column in range(0, head_width, ROWS):
        target, left = out + 4 * (column * queries + lane), x + 4 * column
        right, factors = weights + 4 * lane, rescale + 4 * lane
        product(ROWS, 2, target, 4 * queries, left, 4, row_bytes, right, 4 * queries, rows, factors)


@inline
def add_lanes_times_rows(out, row_bytes, weights, queries, first, rows, x, end, head_width, ones):
    """Add weights x to ``rows`` rows at ``out``, summed over the queries ``first`` … ``end`` − 1.

    ``weights`` is (rows, queries), and x holds the queries' rows.
    """
    for column in range(0, head_width, COLUMNS):
        for row in range(0, rows, ROWS):
            target, left = out + row * row_bytes + 4 * column, weights + 4 * (row * queries + first)
            right = x + first * row_bytes + 4 * column
            if head_width - column > LANES:
                product(ROWS, 2, target, row_bytes, left, 4 * queries, 4, right, row_bytes, end - first, ones)
            else:
                product(ROWS, 1, target, row_bytes, left, 4 * queries, 4, right, row_bytes, end - first, ones)


@inline
def add_bias(problem, b, h, first, count, start, keys, scores, queries, scratch):
    """Add the bias of ``count`` queries and ``keys`` keys to a block of scores; hide invisible keys."""
    origin = row_of(problem.bias, b, first, h) + 4 * start
    transpose_in(scratch, queries, origin, problem.bias.time_bytes, count, keys)
    invisible, unit, hidden = splat(INVISIBLE), splat(LOG2_E), splat(HIDDEN)
    for offset_bytes in range(0, 4 * queries * keys, VECTOR_BYTES):
        bias = load(scratch + offset_bytes)
        score = fused(bias, unit, load(scores + offset_bytes))
        store(scores + offset_bytes, where(bias <= invisible, hidden, score))


@inline
def hide(scores, queries, start, row, rows, visible_counts):
    """Hide invisible keys in rows ``row`` … ``rows`` − 1 of a block of scores; row 0 is key ``start``."""
    hidden = splat(HIDDEN)
    for lane_bytes in range(0, 4 * queries, VECTOR_BYTES):
        counts = load_words(visible_counts + lane_bytes)
        for j in range(row, rows):
            address = scores + 4 * queries * j + lane_bytes
            store(address, where(counts > words(start + j), load(address), hidden))


@inline
def random_words(problem, b, h, i, j):
    """Return Philox's four words for LANES queries from i on: for the keys j, j + 1, j + 2 and j + 3.

    Bit for bit ``functional.philox.random_words`` at (b, h, i, j), for j a multiple of 4.
    """
    counter = longs(j // 4), longs(lane_numbers() + words(i)), longs(b * problem.heads + h)
    return philox((*counter, longs(problem.stream)), problem.key0, problem.key1)


@inline
def drop(problem, b, h, first, start, weights, queries, keys):
    """Set the weights of a block that dropout drops to zero."""
    threshold, zero = words(problem.threshold), splat(0.0)
    for lane in range(0, queries, LANES):
        for j in range(0, keys, 4):
            row = weights + 4 * (j * queries + lane)
            for number, word in enumerate(random_words(problem, b, h, first + lane, start + j)):
                address = row + 4 * queries * number
                store(address, where(word >= threshold, load(address), zero))
