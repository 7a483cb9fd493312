"""Comparison of layer normalisation on the CPU with its definition."""

import numpy as np

from common.kernels_of_rows import check_pair, laid_out
from minitransformer import functional
from minitransformer.kernels.cpu import layer_norm as kernel

NORM = kernel.layer_norm, kernel.layer_norm_backward
ADD_NORM = kernel.add_layer_norm, kernel.add_layer_norm_backward
DEFINED_NORM = functional.layer_norm, functional.layer_norm_backward
DEFINED_ADD_NORM = functional.add_layer_norm, functional.add_layer_norm_backward


def draw(seed, shape, layout="plain", mean=0.0, bias=True):
    """Return x, residual, gain, bias and dy."""
    random = np.random.default_rng(seed)
    x, residual, dy = random.standard_normal((3, *shape), np.float32)
    gain, shift = random.standard_normal((2, shape[-1]), np.float32)
    x += np.float32(mean)
    return (
        *(laid_out(array, layout) for array in (x, residual)),
        gain,
        shift if bias else None,
        laid_out(dy, layout),
    )


def check(x, residual, gain, bias, dy, pairs=(NORM, ADD_NORM), eps=1e-5):
    """Check both operations."""
    for pair, definition, terms in (
        (pairs[0], DEFINED_NORM, (x,)),
        (pairs[1], DEFINED_ADD_NORM, (x, residual)),
    ):
        total = sum(terms).reshape(-1, x.shape[-1]).astype(np.float64)
        r = 1 / np.sqrt(total.var(axis=-1) + eps).min(initial=np.inf) if total.size else 1.0
        x_hat, g = r * np.abs(total).max(initial=0), np.abs(dy * gain).max(initial=0)
        in_sums = np.sqrt(len(total)) * np.abs(dy).max(initial=0)
        dx_sizes = [r * g * (1 + x_hat)] * len(terms)
        sizes = [x_hat * np.abs(gain).max(), *dx_sizes, in_sums * x_hat, in_sums]
        arrays = (*terms, gain, bias)
        check_pair(pair, definition, arrays, dy, {"eps": eps}, sizes if bias is not None else sizes[:-1])
