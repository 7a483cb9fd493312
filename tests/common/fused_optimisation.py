"""Comparison of an optimiser's passes on the CPU with their definitions."""

import numpy as np
import pytest

from common.kernels_of_rows import FLOOR
from minitransformer import functional
from minitransformer.kernels.cpu import optimisation as kernel

NAMES = "values", "gradients", "first_moment", "second_moment"
SETTINGS = {
    "steps": 3,
    "learning_rate": 0.1,
    "betas": (0.8, 0.95),
    "eps": 1e-3,
    "weight_decay": 0.2,
    "gradient_scale": 0.7,
}


def draw(seed, size):
    """Return the four buffers, within larger ones whose ends are 7."""
    random = np.random.default_rng(seed)
    whole = np.full((4, size + 64), 7, np.float32)
    buffers = [row[32 : 32 + size] for row in whole]
    for buffer in buffers:
        buffer[...] = random.standard_normal(size, np.float32)
    np.abs(buffers[3], out=buffers[3])
    return buffers


def check_update(seed, size, update=kernel.adamw, **changes):
    """Compare an update with the definition's; nothing beside the buffers may be written."""
    settings, buffers = SETTINGS | changes, draw(seed, size)
    exact, plain = ([buffer.astype(dtype) for buffer in buffers] for dtype in (np.float64, np.float32))
    functional.adamw(*exact, **settings)
    functional.adamw(*plain, **settings)
    gradients = buffers[1].copy()
    update(*buffers, **settings)
    for name, best, theirs, mine in zip(NAMES, exact, plain, buffers, strict=True):
        error, allowed = (np.abs(x - best).max(initial=0) for x in (mine, theirs))
        assert error <= 2 * allowed + FLOOR * np.abs(best).max(initial=0), f"result {name}: {error:.2e}"
        assert (buffers[0].base[:, :32] == 7).all() and (buffers[0].base[:, 32 + size :] == 7).all(), (
            "result: beyond"
        )
    np.testing.assert_array_equal(buffers[1], gradients)


def check_norm(seed, size, squared_norm=kernel.squared_norm):
    """Compare a sum of squares with one in float64: float32 adds a thousand of them at a time."""
    _, gradients, _, _ = draw(seed, size)
    assert squared_norm(gradients) == pytest.approx(np.square(gradients, dtype=np.float64).sum(), rel=3e-7), (
        "result"
    )
