"""Comparison of dropout on the CPU with its definition."""

import numpy as np

from common.kernels_of_rows import laid_out, run_pair
from minitransformer import functional
from minitransformer.functional import Key
from minitransformer.kernels.cpu import dropout as kernel

PAIR = kernel.dropout, kernel.dropout_backward
DEFINITION = functional.dropout, functional.dropout_backward
KEY = Key(0x0123456789ABCDEF, 77)


def draw(seed, shape, layout="plain"):
    """Return x and dy."""
    x, dy = np.random.default_rng(seed).standard_normal((2, *shape), np.float32)
    return laid_out(x, layout), laid_out(dy, layout)


def check(x, dy, pair=PAIR, rate=0.3, key=KEY):
    """Fail unless ``pair`` gives the bits of the definition."""
    settings = {"rate": rate, "key": key}
    ours, theirs = (run_pair(one, (x,), dy, settings) for one in (pair, DEFINITION))
    for mine, expected in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, expected, "result")
        assert mine.dtype == np.float32
