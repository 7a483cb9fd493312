"""What all operations of ``minitransformer.functional`` have in common: types, ownership, messages."""

import re
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from common.operations import (
    CASES,
    SMALL_CASES,
    check_adds,
    check_refusal_of_dy,
    heads,
    names,
    transposed,
    upstream,
)

from minitransformer import functional
from minitransformer.functional import Key, Mask, causal_mask, full_mask
from minitransformer.kernels import KERNELS

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FULL_TYPES = [np.dtype("float32"), np.dtype("float64")]
HALF_TYPES = [np.dtype("float16"), BFLOAT16]

# one small case for each setting that is a number
FLOAT_SETTINGS = {
    f"{case.operation}-{setting}": (case, setting)
    for case in SMALL_CASES
    for setting, value in case.settings.items()
    if isinstance(value, float) and value
}
FIRST_CASES = {case.operation: case for case in reversed(CASES)}
in_every_operation = pytest.mark.parametrize("case", FIRST_CASES.values(), ids=FIRST_CASES)
in_every_case = pytest.mark.parametrize("case", SMALL_CASES, ids=names(SMALL_CASES))


def cast(arrays, dtype):
    return [None if array is None else array.astype(dtype) for array in arrays]


def forward_and_backward(case, arrays, **settings):
    """Return the value of ``case`` at ``arrays`` and all gradients."""
    y, saved = case.forward(*arrays, **(case.settings | settings))
    return y, case.backward(upstream(y), saved)


def arrays_within(value):
    """Return all arrays in nested tuples."""
    if isinstance(value, np.ndarray):
        return [value]
    return [array for part in value for array in arrays_within(part)] if isinstance(value, tuple) else []


# --- types


@pytest.mark.parametrize("dtype", FULL_TYPES, ids=str)
@in_every_case
def test_type_in_is_type_out(case, dtype):
    arrays = cast(case.arrays(), dtype)
    y, gradients = forward_and_backward(case, arrays)
    assert y.dtype == dtype
    for array, gradient in zip(arrays, gradients, strict=True):
        assert (gradient is None) == (array is None)
        if array is not None:
            assert (gradient.dtype, gradient.shape) == (dtype, array.shape)


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@in_every_case
def test_half_types_are_computed_in_float32(case, dtype):
    arrays = cast(case.arrays(), dtype)
    y, saved = case.forward(*arrays, **case.settings)
    in_float32, saved_in_float32 = case.forward(*cast(arrays, np.float32), **case.settings)
    rounded = in_float32 if in_float32.ndim == 0 else in_float32.astype(dtype)  # totals stay in float32
    assert y.dtype == rounded.dtype
    np.testing.assert_array_equal(y, rounded)

    dy = upstream(y)
    gradients = case.backward(dy, saved)
    gradients_in_float32 = case.backward(dy.astype(np.float32), saved_in_float32)
    for gradient, other in zip(gradients, gradients_in_float32, strict=True):
        assert (gradient is None) == (other is None)
        if other is not None:
            assert gradient.dtype == dtype
            np.testing.assert_array_equal(gradient, other.astype(dtype))


@pytest.mark.parametrize(("case", "setting"), FLOAT_SETTINGS.values(), ids=FLOAT_SETTINGS)
def test_a_setting_in_float64_changes_no_type(case, setting):
    arrays = cast(case.arrays(), np.float32)
    y, gradients = forward_and_backward(case, arrays, **{setting: np.float64(case.settings[setting])})
    assert {array.dtype.name for array in (y, *gradients) if array is not None} == {"float32"}


def test_an_additive_bias_in_float64_changes_no_type():
    q, k, v = cast(map(np.ones, heads(1, 2, 2, 1, 1, 2)), np.float32)
    hidden = np.array([[0.0, -1e300], [0.0, np.finfo(np.float64).min]])
    y, _ = functional.attention(q, k, v, mask=full_mask(2), bias=hidden)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, v)


@in_every_operation
def test_types_that_do_not_fit_are_errors(case):
    operation, arrays = case.operation, case.arrays()
    for place in range(1, len(arrays)):
        mixed = [*arrays]
        mixed[place] = arrays[place].astype(np.float32)
        with pytest.raises(TypeError, match=rf"^{operation}: \w+ is float64 but \w+ is float32"):
            case.forward(*mixed, **case.settings)
    for wrong, kind in (
        (np.ones(case.shapes[0], np.int64), "int64 array"),
        (np.ones(case.shapes[0], bool), "bool array"),
        (np.ones(case.shapes[0], complex), "complex128 array"),
        ([1.0, 2.0], "list"),
    ):
        with pytest.raises(TypeError, match=rf"^{operation}: \w+ is a {kind}; expected an array of float32"):
            case.forward(wrong, *arrays[1:], **case.settings)


@pytest.mark.parametrize("operation", sorted({*KERNELS} & {*FIRST_CASES} - {"linear_cross_entropy"}))
@pytest.mark.parametrize("dtype", [np.dtype("float32"), BFLOAT16], ids=str)
def test_a_gradient_of_another_type_or_shape_is_an_error(operation, dtype):
    case = FIRST_CASES[operation]
    arrays = cast(case.arrays(), dtype)
    y, _ = case.forward(*arrays, **case.settings)
    check_refusal_of_dy((case.forward, case.backward), arrays, upstream(y), case.settings)


def test_attention_weights_keep_the_rules_for_types():
    shape = (1, 2, 1, 4)
    large = np.full(shape, 200, np.float16)  # its products overflow float16
    weights = functional.attention_weights(large, large, mask=full_mask(2))
    assert weights.dtype == np.float16
    np.testing.assert_array_equal(weights, 0.5)
    for wrong in (large.astype(np.float32), large.astype(int)):
        with pytest.raises(TypeError, match=r"^attention_weights: .*k is"):
            functional.attention_weights(large, wrong, mask=full_mask(2))


# --- ownership


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@in_every_case
def test_nobody_writes_into_an_array_that_was_given(case, dtype):
    arrays = cast(case.arrays(), dtype)
    given = [*arrays_within((*arrays, *case.settings.values()))]
    for array in given:
        array.flags.writeable = False
    try:
        y, saved = case.forward(*arrays, **case.settings)
        dy = upstream(y)
        for array in (dy, *arrays_within((y, saved))):
            array.flags.writeable = False
        first = case.backward(dy, saved)
        second = case.backward(dy, saved)
    finally:
        for array in given:
            array.flags.writeable = True  # those of the settings belong to the table
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@in_every_case
def test_add_to_adds_and_returns_the_owner(case):
    check_adds(case)


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@pytest.mark.parametrize("owner_type", ["same", "float32"])
@in_every_operation
def test_gradients_of_half_types_can_be_added_to(case, owner_type, dtype):
    y, saved = case.forward(*cast(case.arrays(), dtype), **case.settings)
    gradients = case.backward(upstream(y), saved)
    owners = tuple(np.ones(g.shape, dtype if owner_type == "same" else owner_type) for g in gradients)
    returned = case.backward(upstream(y), saved, add_to=owners)
    for gradient, owner, new in zip(gradients, owners, returned, strict=True):
        assert new is owner
        rounding = float(ml_dtypes.finfo(dtype).eps)
        np.testing.assert_allclose(
            new.astype(float), 1 + gradient.astype(float), rtol=2 * rounding, atol=2 * rounding
        )


@pytest.mark.parametrize("operation", ["linear", "embedding", "add_positions", "linear_cross_entropy"])
def test_gradients_of_half_types_are_summed_in_float32_before_they_are_added(operation):
    rows = 5000  # a sum of ones in float16 stops at 2048
    ones = np.ones((rows, 1), np.float16)
    no_ids = np.zeros((1, rows), int)
    arrays, owner, settings, dy = {
        "linear": ((ones, np.ones((1, 1), np.float16), None), 1, {}, ones),
        "embedding": ((ones[:1],), 0, {"ids": no_ids[0]}, ones),
        "add_positions": ((ones[None], ones[:1]), 1, {"positions": no_ids}, ones[None]),
        "linear_cross_entropy": (
            (ones, np.zeros((2, 1), np.float16), None),
            1,
            {"targets": no_ids[0]},
            np.float32(2),  # p − q is ±1/2
        ),
    }[operation]
    backward = getattr(functional, f"{operation}_backward")
    _, saved = getattr(functional, operation)(*arrays, **settings)
    owners = [None] * len(arrays)
    owners[owner] = np.zeros(arrays[owner].shape, np.float16)
    gradient = backward(dy, saved, add_to=owners)[owner]
    assert gradient is owners[owner]
    np.testing.assert_array_equal(np.abs(gradient), 5000)


def test_the_gradient_of_a_large_table_is_never_a_temporary():
    rows, width, tokens = 16384, 512, 4
    random = np.random.default_rng(0)
    table, gradient = random.normal(size=(rows, width)), np.ones((rows, width))
    h, ids = random.normal(size=(tokens, width)), random.integers(0, rows, tokens)
    for operation, arrays, owners, settings in (
        ("linear", (h, table.T, None), (None, gradient.T, None), {}),
        ("linear", (random.normal(size=(tokens, rows)), table, None), (None, gradient, None), {}),
        ("linear_cross_entropy", (h, table, None), (None, gradient, None), {"targets": ids}),
        ("embedding", (table,), (gradient,), {"ids": ids}),
    ):
        backward = getattr(functional, f"{operation}_backward")
        y, saved = getattr(functional, operation)(*arrays, **settings)
        expected = backward(upstream(y), saved)
        gradient[...] = 1
        tracemalloc.start()
        backward(upstream(y), saved, add_to=owners)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < table.nbytes / 4, operation
        for owner, other in zip(owners, expected, strict=True):
            if owner is not None:
                np.testing.assert_allclose(owner, 1 + other, rtol=1e-12, atol=1e-12)


# --- layouts


def every_other_backwards(array):
    """Return the same values as a view with steps of −2."""
    room = np.empty([2 * length for length in array.shape], array.dtype)
    view = room[(..., *(slice(None, None, -2),) * array.ndim)]
    view[...] = array
    return view


@pytest.mark.parametrize("layout", [transposed, every_other_backwards])
@in_every_case
def test_views_count_by_their_values(case, layout):
    arrays = case.arrays()
    y, gradients = forward_and_backward(case, arrays)
    views = [None if array is None else layout(array) for array in arrays]
    y_of_views, saved = case.forward(*views, **case.settings)
    gradients_of_views = case.backward(layout(upstream(y)), saved)
    np.testing.assert_allclose(y_of_views, y, rtol=1e-12, atol=1e-13)
    for gradient, other in zip(gradients_of_views, gradients, strict=True):
        assert (gradient is None) == (other is None)
        if other is not None:
            np.testing.assert_allclose(gradient, other, rtol=1e-12, atol=1e-13)


# --- messages


def attend(queries, keys, values=None, mask=None, **settings):
    values = keys if values is None else values
    mask = full_mask(3) if mask is None else mask
    return functional.attention(*map(np.ones, (queries, keys, values)), mask=mask, **settings)


def score(logits, targets):
    return functional.cross_entropy(np.ones(logits), targets=np.asarray(targets))


TABLE = np.ones((5, 4))
FOUR = 2, 3, 4, 2
MESSAGES = {
    "negative id": (
        lambda: functional.embedding(TABLE, ids=np.array([[0, 1], [-1, 2]])),
        r"embedding: id -1 at index \(1, 0\) is out of range; expected 0 to 4",
    ),
    "id too large": (
        lambda: functional.embedding(TABLE, ids=np.array([[0, 1], [2, 5]])),
        r"embedding: id 5 at index \(1, 1\) is out of range; expected 0 to 4",
    ),
    "position too large": (
        lambda: functional.add_positions(np.ones((1, 2, 4)), TABLE, positions=np.array([4, 5])),
        r"add_positions: position 5 at index \(1,\) is out of range; expected 0 to 4",
    ),
    "target too large": (
        lambda: score((2, 2, 3), [[0, 1], [2, 3]]),
        r"cross_entropy: target 3 at index \(1, 1\) is out of range; expected 0 to 2",
    ),
    "negative target": (
        lambda: score((3, 3), [0, -100, -1]),
        r"cross_entropy: target -1 at index \(2,\) is out of range; expected 0 to 2",
    ),
    "targets of another shape": (lambda: score((2, 3, 5), np.zeros((3, 2), int)), "cross_entropy: .*shape"),
    "too many targets": (lambda: score((2, 3, 5), np.zeros((2, 4), int)), "cross_entropy: .*shape"),
    "positions of an unbatched x": (
        lambda: functional.add_positions(np.ones((2, 4)), TABLE, positions=np.arange(2)),
        "add_positions: .*shape",
    ),
    "a residual that would be broadcast": (
        lambda: functional.add_layer_norm(np.ones((2, 3, 4)), np.ones((3, 4)), np.ones(4), None),
        "add_layer_norm: .*shape",
    ),
    "linear": (
        lambda: functional.linear(np.ones((2, 3)), TABLE, None),
        r"linear: x has shape \(2, 3\) and weight \(5, 4\); the last axis of x",
    ),
    "three axes": (lambda: attend((2, 3, 4), FOUR), r"attention: q, k, v have shapes \(2, 3, 4\)"),
    "keys and values differ": (
        lambda: attend(FOUR, FOUR, (2, 3, 4, 1)),
        r"attention: q, k, v have shapes .* \(2, 3, 4, 1\); expected",
    ),
    "batches differ": (lambda: attend(FOUR, (1, 3, 4, 2)), "attention: .* differ in batch or head width"),
    "head widths differ": (lambda: attend(FOUR, (2, 3, 4, 1)), "attention: .* differ in batch or head width"),
    "groups": (lambda: attend(FOUR, (2, 3, 3, 2)), "attention: 4 query heads over 3 key/value heads"),
    "no key heads": (lambda: attend(FOUR, (2, 3, 0, 2)), "attention: 4 query heads over 0 key/value heads"),
    "kv_len": (
        lambda: attend(FOUR, FOUR, mask=Mask(np.array([1, 2, 3]))),
        r"attention: mask.kv_len has shape \(3,\); expected an integer or shape \(2,\)",
    ),
    "prefix_len": (
        lambda: attend(FOUR, FOUR, mask=Mask(3, np.zeros((2, 1), int))),
        r"attention: mask.prefix_len has shape \(2, 1\)",
    ),
    "offset": (
        lambda: attend(FOUR, FOUR, mask=Mask(3, 0, np.zeros((2, 3), int))),
        r"attention: mask.offset has shape \(2, 3\)",
    ),
    "attention weights": (
        lambda: functional.attention_weights(np.ones(FOUR), np.ones((2, 3, 3, 2)), mask=causal_mask(3)),
        "attention_weights: 4 query heads over 3 key/value heads",
    ),
}


@in_every_operation
def test_arrays_that_do_not_fit_are_not_broadcast(case):
    arrays = case.arrays()
    for place in range(1, len(arrays)):
        for length in (1, arrays[place].shape[-1] + 1):
            wrong = [*arrays]
            wrong[place] = np.ones((*arrays[place].shape[:-1], length))
            told = error_of(case, wrong)
            assert re.match(r"\w+: .*(shape|differ in)", told), (
                f"{case.operation}: argument {place} of shape {wrong[place].shape} gives {told!r}; "
                "raise a ValueError that begins with the operation and has the shapes"
            )


def error_of(case, arrays):
    """Return what the ValueError says that ``case`` raises at ``arrays``, or "no error"."""
    try:
        case.forward(*arrays, **case.settings)
    except ValueError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("mistake", MESSAGES)
def test_a_mistake_is_named(mistake):
    call, message = MESSAGES[mistake]
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan")])
def test_a_rate_of_dropout_is_below_one(rate):
    with pytest.raises(ValueError, match=rf"^dropout: dropout is {rate}; expected a number from 0 up to"):
        functional.dropout(TABLE, rate=rate, key=Key(0))
    with pytest.raises(ValueError, match=rf"^attention: dropout is {rate}; expected a number from 0 up to"):
        attend(FOUR, FOUR, dropout=rate)


def test_ids_are_integers():
    for call in (
        lambda: functional.embedding(TABLE, ids=np.ones(2)),
        lambda: functional.add_positions(TABLE[None], TABLE, positions=np.arange(5.0)),
        lambda: functional.cross_entropy(TABLE, targets=np.ones(5)),
    ):
        with pytest.raises(TypeError, match=r"s have type float64; expected integers$"):
            call()
