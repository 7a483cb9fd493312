"""Positions added to embeddings: a learned table, or the fixed sinusoids of arXiv 1706.03762."""

from typing import Any, NamedTuple

from minitransformer.arrays import array_module
from minitransformer.functional.embedding import add_rows
from minitransformer.functional.rules import backward, check_gradient, check_ids, forward


class AddPositionsSaved(NamedTuple):
    """What ``add_positions_backward`` needs."""

    positions: Any  # (T,) or (B, T)
    rows: int  # P
    shape: tuple  # of x
    dtype: Any  # of x


@forward
def add_positions(x, table, *, positions):
    """Return ``x + table[positions]``: learned positions (Gehring et al., arXiv 1705.03122; GPT, BERT).

    ``x`` (B, T, D), ``table`` (P, D), ``positions`` integers (T,), the same for every row of the batch, or
    (B, T) → (B, T, D). Both terms of a sum have its gradient; with ``added`` = table[positions],

        dx = dy,   dadded = dy   (summed over B if positions are (T,))
        dtable_p = Σ dadded over all places of position p
    """
    if x.ndim != 3 or positions.shape not in (x.shape[:2], x.shape[1:2]):
        raise ValueError(
            f"add_positions: x has shape {x.shape} and positions {positions.shape}; "
            "expected (B, T, D) and (T,) or (B, T)"
        )
    if table.shape[1:] != x.shape[2:]:
        raise ValueError(
            f"add_positions: x has shape {x.shape} and table {table.shape}; expected (B, T, D) and (P, D)"
        )
    check_ids("add_positions", positions, table.shape[0], "position")
    return x + table[positions], AddPositionsSaved(positions, table.shape[0], x.shape, x.dtype)


@backward
def add_positions_backward(dy, saved, *, add_to=None):
    """Return ``dx, dtable``."""
    positions, rows, shape, _ = saved
    check_gradient("add_positions_backward", dy, shape)
    dadded = dy.sum(axis=0) if positions.ndim == 1 else dy  # of the shape of positions, and D
    owner = add_to[1] if add_to else None
    dtable = add_rows(owner, rows, positions, dadded)
    return dy, dtable


class AddSinusoidsSaved(NamedTuple):
    """What ``add_sinusoids_backward`` needs: nothing."""


@forward
def add_sinusoids(x, *, positions):
    """Return ``x + sinusoidal_positions(positions)``: positions as in arXiv 1706.03762.

    ``x`` (B, T, D), ``positions`` integers (T,) or (B, T) → (B, T, D). The sinusoids are a constant: dx = dy.
    """
    xp = array_module(x)
    return x + sinusoidal_positions(xp, positions, x.shape[-1], x.dtype), AddSinusoidsSaved()


@backward
def add_sinusoids_backward(dy, saved):
    """Return ``(dx,)``."""
    return (dy,)


def sinusoidal_positions(xp, positions, width, dtype):
    """Return the sinusoids of "Attention Is All You Need" (arXiv 1706.03762, section 3.5), (…, D).

        row[2i]     = sin(p / 10000^(2i/D))
        row[2i + 1] = cos(p / 10000^(2i/D))

    for every p of ``positions`` (…), an array of ``xp``.
    """
    two_i = xp.arange(0, width, 2, dtype=xp.float64)
    angle = positions[..., None] / 10000 ** (two_i / width)  # p / 10000^(2i/D)
    row = xp.empty((*positions.shape, width), xp.float64)  # (…, D)
    row[..., 0::2] = xp.sin(angle)
    row[..., 1::2] = xp.cos(angle[..., : width // 2])
    return row.astype(dtype)
