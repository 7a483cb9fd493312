"""Comparison of a fused pair with its definition, both against the definition in float64."""

import numpy as np

FLOOR = 8 * 2.0**-24


def value_and_gradients(pair, arrays, dy, **settings):
    """Return the value and the gradients of a forward and its backward."""
    forward, backward = pair
    y, saved = forward(*arrays, **settings)
    return y, *backward(dy, saved)


def in_double(array):
    """Return ``array`` in float64; None for None."""
    return None if array is None else array.astype(np.float64)


def check_pair(definition, fused, arrays, dy, sizes=(), **settings):
    """Fail if an error of ``fused`` exceeds twice the definition's in float32, three times for a gradient.

    In addition it may err by some roundings, relative to the largest entry of a result or to its entry of
    ``sizes``: a result may be small because its terms cancel.
    """
    with np.errstate(all="ignore"):
        exact = value_and_gradients(definition, map(in_double, arrays), in_double(dy), **settings)
        plain = value_and_gradients(definition, arrays, dy, **settings)
        ours = value_and_gradients(fused, arrays, dy, **settings)
        for index, (best, theirs, mine) in enumerate(zip(exact, plain, ours, strict=True)):
            name = "y" if index == 0 else f"gradient {index}"
            if best is None:
                assert mine is None
                continue
            assert mine.dtype == np.float32 and mine.shape == best.shape
            np.testing.assert_array_equal(np.isnan(mine), np.isnan(theirs), err_msg=name)
            np.testing.assert_array_equal(np.isinf(mine), np.isinf(theirs), err_msg=name)
            finite = np.isfinite(theirs) & np.isfinite(best)
            error, allowed = (np.abs(x - best)[finite].max(initial=0) for x in (mine, theirs))
            size = max(np.abs(best)[finite].max(initial=0), sizes[index] if sizes else 0)
            times = 2 if index == 0 else 3
            assert error <= times * allowed + FLOOR * size, f"{name}: {error:.2e}, definition {allowed:.2e}"
    return ours


def laid_out(array, layout):
    """Return an array equal to ``array`` with other strides; None for None."""
    if array is None or layout == "plain":
        return array
    if layout == "transposed":
        return np.ascontiguousarray(array.T).T
    if layout == "reversed":
        return np.ascontiguousarray(array[::-1])[::-1]
    return array.repeat(2, axis=-1)[..., ::2]  # every second


LAYOUTS = ["plain", "transposed", "reversed", "every second"]


def check_owners(fused, arrays, dy, **settings):
    """Fail unless gradients are added to whatever arrays may own them, however these are laid out."""
    _, saved = fused[0](*arrays, **settings)
    plain = fused[1](dy, saved)
    for make in (
        np.ones_like,
        lambda gradient: np.ones_like(gradient.T).T,
        lambda gradient: np.ones_like(gradient).repeat(2, axis=-1)[..., ::2],
        lambda gradient: np.ones_like(gradient)[::-1],
        lambda gradient: np.ones(gradient.shape),
        lambda gradient: np.ones(gradient.shape, np.float16),
        lambda gradient: None,
    ):
        owners = tuple(None if gradient is None else make(gradient) for gradient in plain)
        gradients = fused[1](dy, saved, add_to=owners)
        for gradient, owner, alone in zip(gradients, owners, plain, strict=True):
            if alone is None:
                assert gradient is None
            elif owner is None:
                np.testing.assert_array_equal(gradient, alone)
            else:
                assert gradient is owner
                tolerance = 4e-3 if owner.dtype == np.float16 else 1e-5
                np.testing.assert_allclose(
                    gradient, alone + 1, rtol=tolerance, atol=tolerance * np.abs(alone).max()
                )
    return plain
