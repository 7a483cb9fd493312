"""Comparison of embedding and positions on the CPU with their definitions."""

import numpy as np

from common.kernels_of_rows import check_pair, laid_out
from minitransformer import functional
from minitransformer.kernels.cpu import embedding as kernel

EMBEDDING = kernel.embedding, kernel.embedding_backward
POSITIONS = kernel.add_positions, kernel.add_positions_backward
DEFINED_EMBEDDING = functional.embedding, functional.embedding_backward
DEFINED_POSITIONS = functional.add_positions, functional.add_positions_backward


def draw(seed, batch, length, width, count, layout="plain"):
    """Return x, a table, dy, and ids of every row."""
    random = np.random.default_rng(seed)
    x, dy = random.standard_normal((2, batch, length, width), np.float32)
    table = random.standard_normal((count, width), np.float32)
    return *(laid_out(array, layout) for array in (x, table, dy)), random.integers(0, count, (batch, length))


def check(x, table, dy, ids, pairs=(EMBEDDING, POSITIONS)):
    """Check both operations, and the second with positions that are the same for every row."""
    size = np.abs(dy).max(initial=0) * np.sqrt(ids.size)
    check_pair(pairs[0], DEFINED_EMBEDDING, (table,), dy, {"ids": ids}, (0, size))
    for positions in (ids, np.arange(ids.shape[1]) % len(table)):
        settings = {"positions": positions}
        check_pair(pairs[1], DEFINED_POSITIONS, (x, table), dy, settings, (0, 0, size))
