"""The product with packed weights on the CPU against its definition, both against that in float64."""

import numpy as np
import pytest
from common.fused_packed_linear import check, draw
from hypothesis import given, settings
from hypothesis import strategies as st

from minitransformer import dispatch, functional, reference
from minitransformer.functional import pack_weight
from minitransformer.functional.packed_linear import PACKED_TYPES
from minitransformer.kernels.cpu import packed_linear as fused
from minitransformer.kernels.cpu.threads import limit_threads, thread_count

ROWS = st.one_of(st.integers(0, 9), st.sampled_from([15, 16, 17, 33, 70]))
DEPTHS = st.one_of(st.integers(1, 9), st.sampled_from([31, 64, 100]))
OUTPUTS = st.one_of(st.integers(0, 9), st.sampled_from([15, 16, 17, 33, 64, 130]))


def laid_out(x, layout):
    """Return an array equal to ``x`` (N, D) with other strides."""
    if layout == "transposed":
        return np.asfortranarray(x)
    if layout == "reversed":
        return np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
    if layout == "wide":
        return x.repeat(2, axis=1)[:, ::2]
    return x


@settings(max_examples=300)
@given(
    st.integers(0, 2**32),
    *(ROWS, DEPTHS, OUTPUTS),
    *(st.sampled_from(PACKED_TYPES), st.sampled_from([None, "exact", "tanh"]), st.booleans()),
    st.sampled_from(["plain", "transposed", "reversed", "wide"]),
)
def test_it_is_the_definition(seed, rows, depth, outputs, dtype, gelu, has_bias, layout):
    x, weight, bias = draw(seed, rows, depth, outputs)
    x = laid_out(x, layout)
    before = x.copy()
    check(x, weight, bias if has_bias else None, dtype, gelu)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("dtype", PACKED_TYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (2, 3), (0, 4)])
def test_any_number_of_axes(shape, dtype):
    x, weight, bias = draw(1, int(np.prod(shape)), 40, 50)
    found = check(x.reshape(*shape, 40), weight, bias, dtype)
    assert found.shape == (*shape, 50)


@pytest.mark.parametrize("dtype", PACKED_TYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 100])
def test_large_matrices_on_all_threads(rows, dtype):
    x, weight, bias = draw(2, rows, 700, 1501)
    whole = check(x, weight, bias, dtype)
    packed = pack_weight(weight, dtype)
    for count in range(1, thread_count() + 1):
        with limit_threads(count):
            for _ in range(3):
                np.testing.assert_array_equal(fused.packed_linear(x, bias, weight=packed), whole)


@pytest.mark.parametrize("dtype", PACKED_TYPES)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [1, 2, 4, 40])
def test_what_is_not_finite_reaches_the_result_as_in_the_definition(rows, wrong, dtype):
    x, weight, bias = draw(3, rows, 20, 40)
    weight[7, 33] = wrong
    x[0, 3], bias[5] = wrong, wrong
    packed = pack_weight(weight, dtype)
    for gelu in (None, "exact", "tanh"):
        with np.errstate(invalid="ignore"):
            expected = functional.packed_linear(x, bias, weight=packed, gelu=gelu)
            found = fused.packed_linear(x, bias, weight=packed, gelu=gelu)
        for kind in (np.isfinite,) if gelu else (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(kind(found), kind(expected))


def test_mistakes_of_a_caller_are_the_definitions():
    x, weight, bias = draw(4, 2, 6, 5)
    packed = pack_weight(weight)
    for arguments in ((x[:, :4], None), (x, bias[:2]), (x, bias.astype(np.float64)), (x[..., 0].T, None)):
        errors = []
        for packed_linear in (functional.packed_linear, fused.packed_linear):
            with pytest.raises((TypeError, ValueError)) as error:
                packed_linear(*arguments, weight=packed)
            errors.append((error.type, str(error.value)))
        assert errors[0] == errors[1]


def test_dispatch_runs_it_and_tells_watchers():
    x, weight, bias = draw(5, 2, 6, 5)
    packed, seen = pack_weight(weight, "int8"), []

    class Watcher:
        def saw_forward(self, name, path, arrays, settings, y, saved):
            seen.append((name, settings["weight"], y, saved))

    with dispatch.watching(Watcher()):
        found = dispatch.packed_linear(x, bias, weight=packed)
    np.testing.assert_array_equal(found, fused.packed_linear(x, bias, weight=packed))
    assert seen[0][0] == "packed_linear" and seen[0][1] is packed and seen[0][2] is found
    with reference():
        plain = dispatch.packed_linear(x, bias, weight=packed)
    np.testing.assert_array_equal(plain, functional.packed_linear(x, bias, weight=packed))
