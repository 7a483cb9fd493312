"""Packed weights: what packing keeps of them, and the definition of the product with them."""

import inspect

import numpy as np
import pytest
from common.mutations import mutated, run
from hypothesis import given, settings
from hypothesis import strategies as st

from minitransformer import functional
from minitransformer.functional import linear, pack_weight, packed_linear, unpack_weight
from minitransformer.functional.packed_linear import PACKED_TYPES, PANEL_OUTPUTS

TINY = float(np.finfo(np.float32).tiny)
NUMBERS = st.floats(-(2.0**126), 2.0**126, width=32)


@st.composite
def weights(draw_from, numbers=NUMBERS):
    shape = draw_from(st.integers(0, 9)), draw_from(st.integers(0, 2 * PANEL_OUTPUTS + 1))
    row = st.lists(numbers, min_size=shape[1], max_size=shape[1])
    rows = draw_from(st.lists(row, min_size=shape[0], max_size=shape[0]))
    weight = np.array(rows, np.float32).reshape(shape)
    return np.asfortranarray(weight) if draw_from(st.booleans()) else weight


@settings(max_examples=60)
@given(weights(st.floats(width=32)))
def test_float32_is_kept_bit_for_bit(weight):
    packed = pack_weight(weight)
    np.testing.assert_array_equal(unpack_weight(packed), weight)
    assert packed.panels.shape == (-(-weight.shape[1] // PANEL_OUTPUTS), len(weight), PANEL_OUTPUTS)
    assert not weight.size or packed.panels.ctypes.data % 64 == 0


@settings(max_examples=60)
@given(weights(st.floats(width=32)))
def test_bfloat16_is_rounded_to_the_nearest_even(weight):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with np.errstate(over="ignore"):
        expected = weight.astype(ml_dtypes.bfloat16).astype(np.float32)
    found = unpack_weight(pack_weight(weight, "bfloat16"))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


def test_bfloat16_ties_go_to_the_even_and_nan_stays_nan():
    words = [0x3F80_8000, 0x3F81_8000, 0x7F80_0001, 0xFFFF_FFFF, 0x7F7F_FFFF, 0x8000_0000]
    weight = np.array([words], np.uint32).view(np.float32)
    found = unpack_weight(pack_weight(weight, "bfloat16")).view(np.uint32)
    assert found[0, :2].tolist() == [0x3F80_0000, 0x3F82_0000]
    assert np.isnan(found.view(np.float32)[0, 2:4]).all()
    assert found[0, 4:].tolist() == [0x7F80_0000, 0x8000_0000]  # rounded to infinity; minus zero


@settings(max_examples=60)
@given(weights())
def test_int8_is_off_by_at_most_half_a_step(weight):
    packed = pack_weight(weight, "int8")
    largest = np.abs(weight).max(axis=0, initial=0).astype(np.float64)
    np.testing.assert_allclose(packed.scales, np.maximum(largest / 127, TINY), rtol=2**-23)
    assert np.abs(packed.panels.astype(int)).max(initial=0) <= 127
    error = np.abs(unpack_weight(packed).astype(np.float64) - weight)
    assert (error <= packed.scales * (0.5 + 127 * 2.0**-22)).all()  # and float32's rounding
    assert (unpack_weight(packed)[:, largest == 0] == 0).all()


def test_int8_uses_its_whole_range_in_every_column():
    weight = np.random.default_rng(0).standard_normal((50, 37), np.float32) * 10.0 ** np.arange(-18, 19)
    assert (
        np.abs(pack_weight(weight.astype(np.float32), "int8").panels).max(axis=1).ravel()[:37] == 127
    ).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_an_int8_column_with_a_wrong_number_is_nan(wrong):
    weight = np.ones((3, 20), np.float32)
    weight[1, 17] = wrong
    found = unpack_weight(pack_weight(weight, "int8"))
    assert np.isnan(found[:, 17]).all()
    np.testing.assert_array_equal(np.delete(found, 17, axis=1), 1)


@pytest.mark.parametrize("dtype", PACKED_TYPES)
@pytest.mark.parametrize("gelu", [None, "exact", "tanh"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_definition_is_that_of_the_unpacked_weights(dtype, gelu, bias):
    random = np.random.default_rng(1)
    x, weight, bias = (
        random.standard_normal((2, 3, 5)),
        random.standard_normal((5, 19)),
        random.normal(size=19),
    )
    packed = pack_weight(weight, dtype)
    expected, _ = linear(x, unpack_weight(packed).astype(np.float64), bias)
    if gelu is not None:
        expected, _ = getattr(functional, f"gelu_{gelu}")(expected)
    np.testing.assert_array_equal(packed_linear(x, bias, weight=packed, gelu=gelu), expected)
    single = packed_linear(x.astype(np.float32), bias.astype(np.float32), weight=packed, gelu=gelu)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, atol=1e-5)
    half = packed_linear(x.astype(np.float16), None, weight=packed)
    assert half.dtype == np.float16


def test_what_does_not_fit_is_named():
    packed = pack_weight(np.ones((4, 3), np.float32))
    x = np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\) and weight \(4, 3\)"):
        packed_linear(x[:, :3], None, weight=packed)
    with pytest.raises(ValueError, match=r"bias has shape \(4,\); expected \(3,\)"):
        packed_linear(x, x[0], weight=packed)
    with pytest.raises(TypeError, match="x is float32 but bias is float64"):
        packed_linear(x, np.ones(3), weight=packed)
    with pytest.raises(ValueError, match="dtype is 'int4'; expected one of float32, bfloat16, int8"):
        pack_weight(x, "int4")
    with pytest.raises(ValueError, match=r"weight has shape \(4,\); expected \(D, F\)"):
        pack_weight(x[0])


ROUNDING = "(words + 0x7FFF + (words >> 16 & 1)) >> 16"
TIES, RANGE = (
    test_bfloat16_ties_go_to_the_even_and_nan_stays_nan,
    test_int8_uses_its_whole_range_in_every_column,
)


@pytest.mark.parametrize(
    ("text", "wrong", "check"),
    [
        (ROUNDING, "words >> 16", TIES),
        (ROUNDING, "(words + 0x8000) >> 16", TIES),
        ("words >> 16 | 0x40", "words >> 16", TIES),
        ("largest.astype(xp.float32) / INT8_MOST", "largest.astype(xp.float32) / 100", RANGE),
        ("weight.max(axis=0, initial=0)", "weight.max(initial=0)", RANGE),
    ],
)
def test_planted_mistakes_are_caught(text, wrong, check, monkeypatch):
    module = inspect.getmodule(pack_weight)
    changed = run(mutated(inspect.getsource(module), text, wrong), module, {})
    monkeypatch.setitem(globals(), "pack_weight", changed["pack_weight"])
    with pytest.raises(AssertionError):
        check()
