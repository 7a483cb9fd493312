"""The affine map by weights that are packed once and read often, as in decoding, which is mostly reading."""

from typing import Any, NamedTuple

import numpy as np

from minitransformer.arrays import aligned_zeros, array_module
from minitransformer.functional.fusions import GELU
from minitransformer.functional.linear import linear
from minitransformer.functional.rules import forward

PANEL_OUTPUTS = 16  # outputs side by side, a multiple of every vector's length
INT8_MOST = 127
STORED = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}
PACKED_TYPES = tuple(STORED)


class PackedWeight(NamedTuple):
    """A matrix (D, F), as ``pack_weight`` returns it.

    Panel p holds the columns 16 p … 16 p + 15, row after row, in the order in which they are read; the last
    is filled with zeros. Its numbers are float32, the upper halves of float32 (bfloat16), or integers that
    are multiplied by the ``scales`` of their columns (int8).
    """

    panels: Any  # (P, D, 16), float32, uint16 or int8
    scales: Any  # (F,), float32; None but for int8
    shape: tuple[int, int]
    dtype: str


def pack_weight(weight, dtype="float32"):
    """Return ``weight`` (D, F) packed as ``dtype``: ``"float32"``, ``"bfloat16"`` or ``"int8"``.

    bfloat16 is rounded to the nearest, ties to even; NaN stays NaN. For int8 a column w is rounded to
    integers q between −127 and 127, with w ≈ q · scale and scale = max|w| / 127: no entry is off by more than
    half of that. A column with NaN or an infinity becomes NaN.
    """
    if dtype not in STORED:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(STORED)}")
    if weight.ndim != 2:
        raise ValueError(f"pack_weight: weight has shape {weight.shape}; expected (D, F)")
    xp, (depth, outputs) = array_module(weight), weight.shape
    scales = _compute_scales(weight) if dtype == "int8" else None
    shape = -(-outputs // PANEL_OUTPUTS), depth, PANEL_OUTPUTS
    panels = aligned_zeros(xp, shape[0] * depth * PANEL_OUTPUTS, STORED[dtype]).reshape(shape)
    for panel, start in zip(panels, range(0, outputs, PANEL_OUTPUTS), strict=True):
        columns = slice(start, start + PANEL_OUTPUTS)
        part = weight[:, columns].astype(xp.float32)
        if dtype == "bfloat16":
            part = _round_to_bfloat16(part)
        elif dtype == "int8":
            part = _round_to_int8(part, scales[columns])
        panel[:, : part.shape[1]] = part
    return PackedWeight(panels, scales, (depth, outputs), dtype)


def unpack_weight(packed):
    """Return the matrix (D, F) that ``packed`` stands for, in float32."""
    xp, (depth, outputs) = array_module(packed.panels), packed.shape
    matrix = packed.panels.transpose(1, 0, 2).reshape(depth, len(packed.panels) * PANEL_OUTPUTS)[:, :outputs]
    if packed.dtype == "bfloat16":
        return (matrix.astype(xp.uint32) << 16).view(xp.float32)
    matrix = xp.ascontiguousarray(matrix, xp.float32)
    return matrix if packed.scales is None else matrix * packed.scales


def packed_linear(x, bias, *, weight, gelu=None):
    """Return ``y = x · weight + bias``, or GELU of it; nothing is saved, since there is no backward.

    ``x`` (…, D), ``bias`` (F,) or None, ``weight`` a ``PackedWeight`` of shape (D, F) → (…, F). ``gelu`` is
    None, ``"exact"`` or ``"tanh"``.
    """
    return _packed_linear(x, bias, weight=weight, gelu=gelu)[0]


@forward
def _packed_linear(x, bias, *, weight, gelu):
    check_packed_linear(x, bias, weight)
    y, _ = linear(x, unpack_weight(weight).astype(x.dtype, copy=False), bias)
    return apply_gelu(y, gelu), None


def apply_gelu(y, gelu):
    """Return the GELU of ``y`` in the form ``gelu``, or ``y`` itself if that is None."""
    return y if gelu is None else GELU[gelu][0](y)[0]


def check_packed_linear(x, bias, weight):
    """Raise ValueError unless the shapes are compatible."""
    if x.shape[-1:] != weight.shape[:1]:
        raise ValueError(
            f"packed_linear: x has shape {x.shape} and weight {weight.shape}; "
            f"the last axis of x must be as long as the first of weight"
        )
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(f"packed_linear: bias has shape {bias.shape}; expected {weight.shape[1:]}")


def _compute_scales(weight):
    """Return max|w| / 127 of every column (F,), at least the smallest normal number; NaN if not finite."""
    xp = array_module(weight)
    largest = xp.maximum(weight.max(axis=0, initial=0), -weight.min(axis=0, initial=0))
    scales = xp.maximum(largest.astype(xp.float32) / INT8_MOST, xp.finfo(xp.float32).tiny)
    return xp.where(xp.isfinite(scales), scales, xp.float32(xp.nan))


def _round_to_int8(part, scales):
    xp = array_module(part)
    return xp.rint(xp.where(xp.isnan(scales), 0, part / scales)).astype(xp.int8)


def _round_to_bfloat16(part):
    """Return the upper halves of float32 numbers, rounded to the nearest, ties to even."""
    xp = array_module(part)
    words = part.view(xp.uint32)
    rounded = (words + 0x7FFF + (words >> 16 & 1)) >> 16
    return xp.where(xp.isnan(part), words >> 16 | 0x40, rounded).astype(xp.uint16)  # 0x40: no infinity
