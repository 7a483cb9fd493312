"""Comparison of the rectifier on the CPU with its definition."""

import numpy as np

from common.kernels_of_rows import laid_out, run_pair
from minitransformer import functional
from minitransformer.kernels.cpu import relu as kernel

PAIR = kernel.relu, kernel.relu_backward
DEFINITION = functional.relu, functional.relu_backward


def draw(seed, shape, layout="plain"):
    """Return x and dy, with some entries that are 0 or no numbers."""
    random = np.random.default_rng(seed)
    x, dy = random.standard_normal((2, *shape), np.float32)
    for array in (x, dy):
        for special in (0.0, -0.0, np.nan, np.inf, -np.inf):
            array[random.random(shape) < 0.05] = special
    return laid_out(x, layout), laid_out(dy, layout)


def check(x, dy, pair=PAIR):
    """Fail unless ``pair`` gives the numbers of the definition."""
    with np.errstate(invalid="ignore"):
        ours, theirs = (run_pair(one, (x,), dy, {}) for one in (pair, DEFINITION))
    for mine, expected in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, expected, "result")
        assert mine.dtype == np.float32
