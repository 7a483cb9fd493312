"""The affine map with GELU on the pool against its definition, both against the definition in float64."""

import math

import numpy as np
import pytest
from common.kernel_pairs import LAYOUTS, check_owners, check_pair, laid_out, value_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from minitransformer import functional
from minitransformer.kernels.cpu import linear_gelu as fused
from minitransformer.kernels.cpu import matrix_product
from minitransformer.kernels.cpu.threads import limit_threads, thread_count

DEFINITION = functional.linear_gelu, functional.linear_gelu_backward
FUSED = fused.linear_gelu, fused.linear_gelu_backward
FORMS = pytest.mark.parametrize("form", ["exact", "tanh"])
SIZES = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 48, 49, 97, 257]))


def draw(seed, rows, width, features, bias=True):
    """Return x, weight and bias, and dy; ``rows`` is a shape."""
    random = np.random.default_rng(seed)
    x, dy = (random.standard_normal((*rows, size), np.float32) for size in (width, features))
    weight = random.standard_normal((width, features), np.float32) / np.float32(math.sqrt(width))
    return (x, weight, random.standard_normal(features, np.float32) if bias else None), dy


def value_and_slope(pair, x, form):
    """Return GELU and its derivative at the numbers ``x``: the map is the identity."""
    y, saved = pair[0](x[:, None], np.ones((1, 1), x.dtype), np.zeros(1, x.dtype), form=form)
    slope, *_ = pair[1](np.ones_like(y), saved)
    return y[:, 0], slope[:, 0]


@settings(max_examples=50)
@given(
    st.integers(0, 2**32),
    st.sampled_from([(), (0,), (1,), (2, 3), (97,), (2, 2, 40), (260,)]),
    st.tuples(SIZES, SIZES),
    st.booleans(),
    st.sampled_from(["exact", "tanh"]),
    st.lists(st.sampled_from(LAYOUTS), min_size=4, max_size=4),
)
def test_it_is_the_definition(seed, rows, widths, bias, form, layouts):
    arrays, dy = draw(seed, rows, *widths, bias)
    *arrays, dy = [laid_out(array, layout) for array, layout in zip((*arrays, dy), layouts, strict=True)]
    root = np.sqrt(max(1, math.prod(rows)))
    check_pair(DEFINITION, FUSED, arrays, dy, sizes=(1, 1, root, root), form=form)


@FORMS
def test_all_numbers_from_minus_40_to_40(form):
    x = np.concatenate((np.linspace(-40, 40, 100_001), np.geomspace(1e-38, 1, 500))).astype(np.float32)
    exact = value_and_slope(DEFINITION, x.astype(np.float64), form)
    plain, ours = (value_and_slope(pair, x, form) for pair in (DEFINITION, FUSED))
    for best, theirs, mine in zip(exact, plain, ours, strict=True):
        scale = np.maximum(np.abs(x), 1)
        error, allowed = (np.abs(found - best) / scale for found in (mine, theirs))
        assert error.max() <= 2 * allowed.max() + 8 * 2.0**-24


@FORMS
def test_the_tail_is_at_least_as_precise_as_the_definition(form):
    x = np.linspace(-5, -2, 3001).astype(np.float32)
    exact, _ = value_and_slope(DEFINITION, x.astype(np.float64), form)
    plain, ours = (value_and_slope(pair, x, form)[0] for pair in (DEFINITION, FUSED))
    error, allowed = (np.abs(found / exact - 1).max() for found in (ours, plain))
    assert error <= allowed and error < 2e-5


@FORMS
def test_large_numbers_and_what_is_not_finite(form):
    x = np.array([np.inf, -np.inf, np.nan, 1e12, -1e12, 1e18, -1e18, 0.0, -0.0], np.float32)
    with np.errstate(all="ignore"):
        plain, ours = (value_and_slope(pair, x, form) for pair in (DEFINITION, FUSED))
        limits = value_and_slope(DEFINITION, x.astype(np.float64), form)
    for theirs, mine, limit in zip(plain, ours, limits, strict=True):
        same = np.isnan(theirs) == np.isnan(mine)
        right = same & np.isclose(mine, theirs, rtol=1e-6, atol=0, equal_nan=True)
        assert (right | np.isclose(mine, limit, rtol=1e-6, atol=1e-6)).all()


@FORMS
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_added(form, bias):
    check_owners(FUSED, *draw(0, (3, 30), 40, 50, bias), form=form)


@FORMS
def test_the_same_bits_on_any_number_of_threads(form, monkeypatch):
    monkeypatch.setattr(matrix_product, "WORTH_A_THREAD", 1)
    arrays, dy = draw(5, (300,), 70, 130)
    results = []
    for count in range(1, thread_count() + 1):
        with limit_threads(count):
            results += [value_and_gradients(FUSED, arrays, dy, form=form) for _ in range(3)]
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_bad_input_is_refused():
    arrays, _ = draw(6, (9,), 4, 6)
    for wrong in ((arrays[0], arrays[1][:3], None), (arrays[0], arrays[1], arrays[2][:5])):
        errors = []
        for pair in (DEFINITION, FUSED):
            with pytest.raises(ValueError, match="linear") as error:
                pair[0](*wrong, form="exact")
            errors.append(str(error.value).split(":", 1)[1])
        assert errors[0] == errors[1]
    for pair in (DEFINITION, FUSED):
        with pytest.raises(KeyError, match="erf"):
            pair[0](*arrays, form="erf")
        with pytest.raises(KeyError):
            pair[0](*arrays, form=None)
        _, saved = pair[0](*arrays, form="tanh")
        with pytest.raises(ValueError, match=r"shape|broadcast"):
            pair[1](np.ones((8, 6), np.float32), saved)
