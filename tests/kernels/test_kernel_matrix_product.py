"""Products of matrices on the pool: any sizes and strides, and nothing outside of them is read or written."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minitransformer import functional
from minitransformer.kernels.cpu import matrix_product
from minitransformer.kernels.cpu.matrix_product import DEPTH_BLOCK, PANEL, ROW_BLOCK, ROWS, multiply
from minitransformer.kernels.cpu.threads import limit_threads, thread_count
from minitransformer.kernels.cpu.vectors import LANES

FLOOR = 8 * 2.0**-24
LAYOUTS = ["plain", "transposed", "reversed", "every second", "every second, transposed"]
GELU = {"exact": functional.gelu_exact, "tanh": functional.gelu_tanh}
GELU_BACKWARD = {"exact": functional.gelu_exact_backward, "tanh": functional.gelu_tanh_backward}


def around(*sizes):
    """Return sizes from 1 to 9, and those next to ``sizes``."""
    near = [size + step for size in sizes for step in (-1, 0, 1) if size + step > 0]
    return st.one_of(st.integers(1, 9), st.sampled_from(near))


def embedded(matrix, layout):
    """Return a view equal to ``matrix``, and the array that it is part of, NaN elsewhere."""
    if layout.endswith("transposed"):
        view, whole = embedded(matrix.T, layout.removesuffix("transposed").removesuffix(", ") or "plain")
        return view.T, whole
    rows, columns = matrix.shape
    step = 2 if layout == "every second" else 1
    whole = np.full((rows + 4, step * columns + 4 * LANES), np.nan, np.float32)
    view = whole[2 : 2 + rows, LANES : LANES + step * columns : step]
    if layout == "reversed":
        view = view[::-1]
    view[...] = matrix
    return view, whole


@st.composite
def problems(draw_from):
    """Sizes, layouts and options of products."""
    rows = draw_from(around(ROWS, 2 * ROWS, ROW_BLOCK, 2 * ROW_BLOCK))
    columns = draw_from(around(LANES, 2 * LANES, PANEL, 2 * PANEL, matrix_product.MOST_COLUMNS))
    depth = draw_from(st.one_of(st.just(0), around(DEPTH_BLOCK, 2 * DEPTH_BLOCK)))
    layouts = [draw_from(st.sampled_from(LAYOUTS)) for _ in range(2)]
    out_layout = draw_from(st.sampled_from(["plain", "transposed", "reversed"]))
    options = {"add": draw_from(st.booleans())}
    if out_layout != "transposed":
        options["gelu"] = draw_from(st.sampled_from([None, "exact", "tanh"]))
        options["bias"], options["sums"] = draw_from(st.booleans()), draw_from(st.booleans())
    return draw_from(st.integers(0, 2**32)), (rows, columns, depth), (*layouts, out_layout), options


def expected(out, left, right, dtype, add=False, bias=None, gelu=None):
    """Return the result, and GELU's derivative or None, computed in ``dtype``."""
    y = left.astype(dtype) @ right.astype(dtype)
    if add:
        y += out
    if bias is not None:
        y += bias
    if gelu is None:
        return y, None
    y, saved = GELU[gelu](y)
    return y, GELU_BACKWARD[gelu](np.ones_like(y), saved)[0]


def check_close(ours, exact, plain, size, times=2):
    error, allowed = np.abs(ours - exact).max(initial=0), np.abs(plain - exact).max(initial=0)
    assert error <= times * allowed + FLOOR * max(size, np.abs(exact).max(initial=0)), (error, allowed)


def check(problem):
    seed, (rows, columns, depth), (left_layout, right_layout, out_layout), options = problem
    random = np.random.default_rng(seed)
    left, right, start = (
        random.standard_normal(shape, np.float32)
        for shape in ((rows, depth), (depth, columns), (rows, columns))
    )
    arguments = {name: options[name] for name in ("add", "gelu") if name in options}
    if options.get("bias"):
        arguments["bias"] = random.standard_normal(columns, np.float32)
    exact, exact_slope = expected(start, left, right, np.float64, **arguments)
    plain, plain_slope = expected(start, left, right, np.float32, **arguments)
    arrays = {
        "left": embedded(left, left_layout),
        "right": embedded(right, right_layout),
        "out": embedded(start if options["add"] else np.full_like(start, np.nan), out_layout),
    }
    if options.get("gelu"):
        arrays["slope"] = embedded(np.full_like(start, np.nan), out_layout)
    if options.get("sums"):
        arrays["sums"] = embedded(np.ones((1, columns), np.float32), "plain")
    written = {"out", "slope", "sums"}
    before = {name: whole.copy() for name, (_, whole) in arrays.items()}
    views = {name: view for name, (view, _) in arrays.items()}
    if "sums" in views:
        views["sums"] = views["sums"][0]
    multiply(**views, **arguments)
    for name, (view, whole) in arrays.items():
        if name in written:
            outside = np.ones(whole.shape, bool)
            outside[_indices(whole, view)] = False
            np.testing.assert_array_equal(whole[outside], before[name][outside])
        else:
            np.testing.assert_array_equal(whole, before[name])
    size = max(np.abs(start).max(), 1)
    check_close(views["out"], exact, plain, size)
    if "slope" in views:
        check_close(views["slope"], exact_slope, plain_slope, size, times=3)
    if "sums" in views:
        exact_sums = 1 + right.sum(axis=0, dtype=float)
        check_close(
            views["sums"], exact_sums, 1 + right.sum(axis=0), np.abs(right).sum(axis=0).max(initial=1)
        )
    return views


def _indices(whole, view):
    """Return where in ``whole`` the entries of ``view`` are."""
    places = np.arange(whole.size).reshape(whole.shape)
    offset = view.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    rows, columns = (
        np.arange(length) * stride for length, stride in zip(view.shape, view.strides, strict=True)
    )
    flat = (offset + rows[:, None] + columns).ravel() // 4
    assert places.size > flat.max(initial=0)
    return np.unravel_index(flat, whole.shape)


@settings(max_examples=150)
@given(problems())
@example((0, (ROWS + 1, PANEL + 1, DEPTH_BLOCK + 1), ("plain",) * 3, {"add": True, "bias": True}))
@example((1, (ROW_BLOCK + 1, 3, 0), ("plain",) * 3, {"add": False, "bias": True, "gelu": "exact"}))
def test_it_is_the_product(problem):
    check(problem)


@pytest.mark.parametrize("place", [0, 5, ROWS, 30])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row_and_column(place, value):
    random = np.random.default_rng(0)
    left, right = (random.standard_normal(shape, np.float32) for shape in ((31, 40), (40, 31)))
    for changed in ("left", "right"):
        a, b, out = left.copy(), right.copy(), np.empty((31, 31), np.float32)
        (a if changed == "left" else b.T)[place, 7] = value
        multiply(out, a, b)
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(np.isfinite(out), np.isfinite(a @ b))
            np.testing.assert_array_equal(np.isnan(out), np.isnan(a @ b))


def test_nothing_to_do():
    multiply(np.empty((0, 5), np.float32), np.empty((0, 3), np.float32), np.empty((3, 5), np.float32))
    multiply(np.empty((5, 0), np.float32), np.empty((5, 3), np.float32), np.empty((3, 0), np.float32))
    out = np.ones((3, 5), np.float32)
    multiply(out, np.empty((3, 0), np.float32), np.empty((0, 5), np.float32), add=True)
    assert (out == 1).all()
    multiply(out, np.empty((3, 0), np.float32), np.empty((0, 5), np.float32))
    assert not out.any()


def test_the_same_bits_again_and_on_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(matrix_product, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(matrix_product, "TASKS_PER_WORKER", 4)
    options = {"add": True, "bias": True, "gelu": "tanh", "sums": True}
    problem = (
        0,
        (2 * ROW_BLOCK + 3, 3 * PANEL + 5, DEPTH_BLOCK + 9),
        ("plain", "transposed", "plain"),
        options,
    )
    results = []
    for count in range(1, thread_count() + 1):
        with limit_threads(count):
            results += [check(problem) for _ in range(3)]
    for other in results[1:]:
        for name in ("out", "slope", "sums"):
            np.testing.assert_array_equal(other[name], results[0][name])


def test_where_no_axis_of_the_result_is_contiguous():
    out = np.empty((6, 8), np.float32)[::2, ::2]
    for wrong, options in ((out, {}), (np.empty((4, 3), np.float32).T, {"gelu": "exact"})):
        with pytest.raises(ValueError, match="the rows of out must be contiguous"):
            multiply(wrong, np.ones((3, 2), np.float32), np.ones((2, 4), np.float32), **options)
