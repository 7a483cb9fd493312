"""The affine map on the pool against its definition, both against the definition in float64."""

import numpy as np
import pytest
from common.kernel_pairs import LAYOUTS, check_owners, check_pair, laid_out, value_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from minitransformer import dispatch, functional
from minitransformer.functional.linear import LinearSaved
from minitransformer.kernels.cpu import linear as fused
from minitransformer.kernels.cpu import matrix_product
from minitransformer.kernels.cpu.threads import limit_threads, thread_count

DEFINITION = functional.linear, functional.linear_backward
FUSED = fused.linear, fused.linear_backward
SIZES = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 48, 49, 97, 255, 256, 257]))


def draw(seed, rows, width, features, bias=True):
    """Return x, weight and bias, and dy; ``rows`` is a shape."""
    random = np.random.default_rng(seed)
    x, dy = (random.standard_normal((*rows, size), np.float32) for size in (width, features))
    weight = random.standard_normal((width, features), np.float32)
    return (x, weight, random.standard_normal(features, np.float32) if bias else None), dy


@st.composite
def problems(draw_from):
    """Arrays of any shape and layout."""
    rows = draw_from(st.sampled_from([(), (0,), (1,), (2, 3), (97,), (3, 0), (2, 2, 40), (260,)]))
    arrays, dy = draw(
        draw_from(st.integers(0, 2**32)), rows, draw_from(SIZES), draw_from(SIZES), draw_from(st.booleans())
    )
    return [laid_out(array, draw_from(st.sampled_from(LAYOUTS))) for array in (*arrays, dy)]


@settings(max_examples=60)
@given(problems())
def test_it_is_the_definition(problem):
    before = [None if array is None else array.copy() for array in problem]
    *arrays, dy = problem
    rows = max(1, dy.size // dy.shape[-1])
    check_pair(DEFINITION, FUSED, arrays, dy, sizes=(1, 1, np.sqrt(rows), np.sqrt(rows)))
    for array, copy in zip(problem, before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_added(bias):
    check_owners(FUSED, *draw(0, (3, 30), 40, 50, bias))


def test_gradients_are_added_to_a_packed_part():
    arrays, dy = draw(1, (90,), 40, 50)
    _, saved = fused.linear(*arrays)
    _, alone, _ = fused.linear_backward(dy, saved)
    packed = np.ones((40, 150), np.float32)
    _, dweight, _ = fused.linear_backward(dy, saved, add_to=(None, packed[:, 50:100], None))
    assert np.shares_memory(dweight, packed)
    np.testing.assert_allclose(packed[:, 50:100], alone + 1, atol=1e-4)
    assert (packed[:, :50] == 1).all() and (packed[:, 100:] == 1).all()


@pytest.mark.parametrize("pair", [DEFINITION, FUSED])
def test_gradients_are_not_added_to_what_cannot_be_written(pair):
    arrays, dy = draw(2, (9,), 4, 5)
    _, saved = pair[0](*arrays)
    with pytest.raises(ValueError, match="read-only"):
        pair[1](dy, saved, add_to=(None, np.broadcast_to(np.float32(1), (4, 5)), None))


def test_gradients_may_be_added_to_what_is_read():
    arrays, dy = draw(3, (40,), 40, 40)
    _, *alone = value_and_gradients(FUSED, arrays, dy)
    for pick in ("dy", "x", "bias"):
        x, gradient, square = arrays[0].copy(), dy.copy(), np.zeros((40, 40), np.float32)
        _, saved = fused.linear(x, *arrays[1:])
        owner = {"dy": gradient, "x": x, "bias": square}[pick]
        expected = owner + alone[1]
        if pick == "bias":
            expected[3] += alone[2]
        owners = None, owner, square[3] if pick == "bias" else None
        dx, dweight, dbias = fused.linear_backward(gradient, saved, add_to=owners)
        np.testing.assert_array_equal(dx, alone[0])
        np.testing.assert_allclose(dweight, expected, atol=1e-4)
        if pick != "bias":
            np.testing.assert_allclose(dbias, alone[2], atol=1e-4)


def test_what_is_not_finite_reaches_the_result_as_in_the_definition():
    for value in (np.nan, np.inf, -np.inf):
        arrays, dy = draw(4, (40,), 30, 20)
        arrays[0][3, 2] = arrays[2][5] = dy[7, 1] = value
        check_pair(DEFINITION, FUSED, arrays, dy)


def test_the_same_bits_on_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(matrix_product, "WORTH_A_THREAD", 1)
    arrays, dy = draw(5, (300,), 70, 130)
    results = []
    for count in range(1, thread_count() + 1):
        with limit_threads(count):
            results += [value_and_gradients(FUSED, arrays, dy) for _ in range(3)]
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def raised(function, *arguments, **settings):
    """Return the type and the text of what ``function`` raises."""
    with pytest.raises((TypeError, ValueError)) as error:
        function(*arguments, **settings)
    return error.type, str(error.value)


@pytest.mark.parametrize(
    "shapes", [((9, 4), (5, 6), (6,)), ((9, 4), (4, 6), (5,)), ((9, 4), (4, 6), (1, 6)), ((0,), (4, 6), None)]
)
def test_wrong_shapes_are_refused_in_the_same_words(shapes):
    arrays = [None if shape is None else np.ones(shape, np.float32) for shape in shapes]
    assert raised(fused.linear, *arrays) == raised(functional.linear, *arrays)
    mixed = (np.ones((9, 4), np.float32), np.ones((4, 6)), None)
    assert raised(fused.linear, *mixed) == raised(functional.linear, *mixed)


@pytest.mark.parametrize("shape", [(8, 6), (9, 5), (9, 7), (10, 6), (2, 9, 6), (6,), (1, 6)])
def test_a_gradient_of_another_shape_is_refused(shape):
    arrays, _ = draw(6, (9,), 4, 6)
    for pair in (DEFINITION, FUSED):
        _, saved = pair[0](*arrays)
        with pytest.raises(
            ValueError, match=r"linear_backward: dy has shape .*; expected that of y, \(9, 6\)"
        ):
            pair[1](np.ones(shape, np.float32), saved)


def test_kernels_run_where_there_is_enough_to_compute():
    arrays, _ = draw(7, (256,), 64, 64)
    y, call = dispatch.linear(*arrays)
    np.testing.assert_array_equal(y, fused.linear(*arrays)[0])
    assert isinstance(call.saved, LinearSaved)
