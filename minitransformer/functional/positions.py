"""Positions: a learned table added to the embeddings, and the fixed sinusoids of the 2017 paper."""

from typing import Any, NamedTuple

from minitransformer.arrays import array_module
from minitransformer.functional.embedding import add_rows
from minitransformer.functional.rules import backward, check_ids, forward


class AddPositionsSaved(NamedTuple):
    """What ``add_positions_backward`` needs."""

    positions: Any
    rows: int


@forward
def add_positions(x, table, *, positions):
    """Return ``x + table[positions]``: learned positions (Gehring et al., arXiv 1705.03122; GPT, BERT).

    ``x`` (B, T, D), ``table`` (P, D), ``positions`` integers (T,), the same for every row, or (B, T)
    → (B, T, D).

    A sum hands its gradient to both terms: dx = dy, and dtable_p = Σ dy_bt over all (b, t) at position p.
    """
    if x.ndim != 3 or positions.shape not in (x.shape[:2], x.shape[1:2]):
        raise ValueError(
            f"add_positions: x has shape {x.shape} and positions {positions.shape}; "
            "expected (B, T, D) and (T,) or (B, T)"
        )
    check_ids("add_positions", positions, table.shape[0], "position")
    return x + table[positions], AddPositionsSaved(positions, table.shape[0])


@backward
def add_positions_backward(dy, saved, *, add_to=None):
    """Return ``dx, dtable``."""
    shared_by_all_rows = saved.positions.ndim == 1
    dpositions = dy.sum(axis=0) if shared_by_all_rows else dy
    owner = add_to[1] if add_to else None
    return dy, add_rows(owner, saved.rows, saved.positions, dpositions)


class AddSinusoidsSaved(NamedTuple):
    """What ``add_sinusoids_backward`` needs: nothing."""


@forward
def add_sinusoids(x, *, positions):
    """Return ``x + sinusoidal_positions(positions)``: positions as in the 2017 paper.

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
    even = xp.arange(0, width, 2, dtype=xp.float64)
    angle = positions[..., None] / 10000 ** (even / width)
    rows = xp.empty((*positions.shape, width), xp.float64)
    rows[..., 0::2] = xp.sin(angle)
    rows[..., 1::2] = xp.cos(angle[..., : width // 2])
    return rows.astype(dtype)
