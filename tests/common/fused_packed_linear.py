"""Comparison of the product with packed weights on the CPU with its definition."""

import numpy as np

from minitransformer import functional
from minitransformer.functional import pack_weight, unpack_weight
from minitransformer.kernels.cpu import packed_linear as fused

FLOOR = 8 * 2.0**-24


def draw(seed, rows, depth, outputs):
    """Return random x (rows, D), weight (D, F) and bias (F,)."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, depth), np.float32)
    return (
        x,
        random.standard_normal((depth, outputs), np.float32),
        random.standard_normal(outputs, np.float32),
    )


def check(x, weight, bias, dtype="float32", gelu=None, packed_linear=fused.packed_linear):
    """Fail if the error of ``packed_linear`` exceeds twice the definition's in float32, or its rounding.

    The scale of int8 is applied to a sum, not to its terms.
    """
    packed = pack_weight(weight, dtype)
    exact_bias = None if bias is None else bias.astype(np.float64)
    exact = functional.packed_linear(x.astype(np.float64), exact_bias, weight=packed, gelu=gelu)
    plain = functional.packed_linear(x, bias, weight=packed, gelu=gelu)
    ours = packed_linear(x, bias, weight=packed, gelu=gelu)
    assert ours.dtype == np.float32 and ours.shape == exact.shape
    size = np.linalg.norm(x, axis=-1).max(initial=0) * np.linalg.norm(unpack_weight(packed), axis=0).max(
        initial=0
    )
    error, allowed = (np.abs(each - exact).max(initial=0) for each in (ours, plain))
    assert error <= 2 * allowed + FLOOR * size, f"y: {error:.2e}, definition {allowed:.2e}"
    return ours
