"""The vector operations of which kernels are written, each against NumPy."""

import numba
import numpy as np
import pytest

from minitransformer.functional.philox import MULTIPLIERS
from minitransformer.kernels.cpu.compiling import inline
from minitransformer.kernels.cpu.products import product, transpose
from minitransformer.kernels.cpu.vectors import (
    LANES,
    exp2,
    high,
    load,
    load_first,
    load_words,
    longs,
    low,
    max_lane,
    maximum,
    product_of_low,
    splat,
    store,
    store_first,
    sum_lanes,
    where,
)

RANDOM = np.random.default_rng(0)


def address(array):
    return array.ctypes.data


@inline
def exp2_of(out, x, count):
    for place in range(0, 4 * count, 4 * LANES):
        store(out + place, exp2(load(x + place)))


def powers(x):
    whole = np.resize(np.asarray(x, np.float32), -(-len(x) // LANES) * LANES)
    out = np.empty_like(whole)
    exp2_of(address(out), address(whole), whole.size)
    return out[: len(x)]


def test_exp2_is_right_to_two_units_in_the_last_place():
    x = np.concatenate((np.linspace(-126, 127, 200_001), np.linspace(-1, 1, 100_001))).astype(np.float32)
    exact = np.exp2(x.astype(np.float64))
    units = np.abs(powers(x) - exact) / np.spacing(exact.astype(np.float32))
    assert units.max() < 2
    whole = np.arange(-126, 128)
    np.testing.assert_array_equal(powers(whole), np.exp2(whole.astype(np.float64)))


def test_exp2_of_what_is_hidden_is_zero_and_of_nan_nan():
    x = np.array([-126.6, -200, -3e38, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(powers(x), [0, 0, 0, 0, np.nan])


@inline
def reduced(x):
    return sum_lanes(load(x)), max_lane(load(x))


def test_sum_and_largest_of_lanes():
    x = RANDOM.standard_normal(LANES).astype(np.float32)
    total, largest = reduced(address(x))
    assert total == pytest.approx(x.sum(dtype=np.float64), abs=1e-6)
    assert largest == x.max()


@inline
def chosen(out, x, y, count):
    first = load_first(x, count)
    store_first(out, where(first <= splat(0.0), load(y), maximum(first, load(y))), count)


@pytest.mark.parametrize("count", range(-1, LANES + 1))
def test_what_lies_beyond_the_count_is_neither_read_nor_written(count):
    x, y = RANDOM.standard_normal((2, LANES)).astype(np.float32)
    out = np.full(LANES, 7, np.float32)
    chosen(address(out), address(x), address(y), count)
    expected = np.where(x <= 0, y, np.maximum(x, y))
    expected[max(count, 0) :] = 7
    np.testing.assert_array_equal(out, expected)


@inline
def multiplied_words(high_words, low_words, x):
    disturbed = longs(load_words(x)) ^ longs(0x12345678 << 32)  # above the low words
    product = product_of_low(disturbed, longs(MULTIPLIERS[0]))
    store_words(high_words, low(high(product)))
    store_words(low_words, low(product))


@numba.extending.intrinsic
def store_words(typingctx, out, x):
    from minitransformer.kernels.cpu.emitting import store_at

    def emit(context, builder, sig, args):
        store_at(builder, args[1], args[0])
        return context.get_dummy_value()

    return numba.types.void(out, x), emit


def test_products_of_words():
    x = RANDOM.integers(0, 2**32, LANES, dtype=np.uint32)
    high_words, low_words = np.empty((2, LANES), np.uint32)
    multiplied_words(address(high_words), address(low_words), address(x))
    expected = x.astype(np.uint64) * np.uint64(MULTIPLIERS[0])
    np.testing.assert_array_equal(high_words, expected >> np.uint64(32))
    np.testing.assert_array_equal(low_words, expected & np.uint64(2**32 - 1))


@inline
def multiplied(out, left, right, depth, factors, add):
    columns = 4 * 2 * LANES
    product(3, 2, out, columns, left, 4 * depth, 4, right, columns, depth, None)
    product(3, 2, out, columns, left, 4 * depth, 4, right, columns, depth, factors)
    product(3, 1, out, columns, left, 4 * depth, 4, right, columns, depth, add)


@pytest.mark.parametrize("depth", [0, 1, 5, 64])
def test_a_register_tile_of_a_product(depth):
    left = RANDOM.standard_normal((3, depth)).astype(np.float32)
    right = RANDOM.standard_normal((depth, 2 * LANES)).astype(np.float32)
    factors = RANDOM.standard_normal(2 * LANES).astype(np.float32)
    exact = left.astype(float) @ right
    for add in (False, True):
        out = np.full((3, 2 * LANES), np.nan, np.float32)
        multiplied(address(out), address(left), address(right), depth, address(factors), add)
        expected = exact * (1 + factors.astype(float))
        expected[:, :LANES] = expected[:, :LANES] * add + exact[:, :LANES]
        np.testing.assert_allclose(out, expected, atol=1e-4)


@inline
def transposed(out, x, out_rows, out_columns, x_rows, x_columns):
    transpose(out, 4 * LANES, out_rows, out_columns, x, 4 * LANES, x_rows, x_columns)


@pytest.mark.parametrize("rows", [1, LANES - 1, LANES])
@pytest.mark.parametrize("columns", [1, LANES - 1, LANES])
def test_a_square_is_transposed(rows, columns):
    x = RANDOM.standard_normal((LANES, LANES)).astype(np.float32)
    out = np.full((LANES, LANES), 7, np.float32)
    transposed(address(out), address(x), columns, LANES, rows, columns)
    expected = np.zeros_like(x)
    expected[:columns, :rows] = x[:rows, :columns].T
    expected[columns:] = 7
    np.testing.assert_array_equal(out, expected)
