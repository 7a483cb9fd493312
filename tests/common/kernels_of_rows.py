"""Comparison of the CPU's kernels of rows with their definitions, and the layouts of arrays for it."""

import numpy as np
from hypothesis import strategies as st

FLOOR = 8 * 2.0**-24
LAYOUTS = st.sampled_from(["plain", "wide", "transposed", "reversed", "same"])


def laid_out(x, layout):
    """Return an array equal to ``x`` with other strides; for "same" all its rows are the first."""
    if layout == "wide":
        return np.concatenate((np.full_like(x, 3), x, np.full_like(x, -3)), axis=-1)[
            ..., x.shape[-1] : 2 * x.shape[-1]
        ]
    if layout == "transposed":
        return np.asfortranarray(x)
    if layout == "reversed":
        return np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    if layout == "same" and x.size:
        return np.broadcast_to(x.reshape(-1, x.shape[-1])[0], x.shape)
    return x


def run_pair(pair, arrays, dy, settings, add_to=None):
    """Return y and the gradients that there are."""
    forward, backward = pair
    y, saved = forward(*arrays, **settings)
    return [y, *(d for d in backward(dy, saved, add_to=add_to) if d is not None)]


def check_pair(pair, definition, arrays, dy, settings, sizes):
    """Fail if the error of ``pair`` exceeds twice the definition's in float32, or three times for gradients.

    In addition each result may err by the rounding of its formula, FLOOR times its part of ``sizes``.
    """
    before = [None if x is None else x.copy() for x in (*arrays, dy)]
    doubled = [None if x is None else x.astype(np.float64) for x in (*arrays, dy)]
    exact = run_pair(definition, doubled[:-1], doubled[-1], settings)
    with np.errstate(all="ignore"):
        plain = run_pair(definition, arrays, dy, settings)
    ours = run_pair(pair, arrays, dy, settings)
    for number, (best, theirs, mine, size) in enumerate(zip(exact, plain, ours, sizes, strict=True)):
        assert mine.dtype == np.float32 and mine.shape == best.shape
        error, allowed = (np.abs(x - best).max(initial=0) for x in (mine, theirs))
        limit = (3 if number else 2) * allowed + FLOOR * max(size, np.abs(best).max(initial=0))
        assert error <= limit, f"result {number}: {error:.2e}, definition {allowed:.2e}"
    for x, copy in zip((*arrays, dy), before, strict=True):
        np.testing.assert_array_equal(x, copy)
    return ours
