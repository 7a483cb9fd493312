"""Positions: a learned table added to the embeddings, and the fixed sinusoids of the 2017 paper."""

from typing import Any, NamedTuple

from minitransformer.arrays import array_module
from minitransformer.functional.embedding import check_ids
from minitransformer.functional.rules import backward, forward


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
    check_ids("add_positions", positions, table.shape[0])
    return x + table[positions], AddPositionsSaved(positions, table.shape[0])


@backward
def add_positions_backward(dy, saved):
    """Return ``dx, dtable``."""
    xp = array_module(dy)
    dtable = xp.zeros((saved.rows, dy.shape[-1]), dy.dtype)
    shared_by_all_rows = saved.positions.ndim == 1
    dpositions = dy.sum(axis=0) if shared_by_all_rows else dy
    xp.add.at(dtable, saved.positions, dpositions)
    return dy, dtable


def sinusoidal_positions(xp, length, width, dtype):
    """Return the table of sinusoids of "Attention Is All You Need" (arXiv 1706.03762, section 3.5), (T, D).

        table[p, 2i]     = sin(p / 10000^(2i/D))
        table[p, 2i + 1] = cos(p / 10000^(2i/D))

    It is a constant: it has no gradient.
    """
    even = xp.arange(0, width, 2, dtype=xp.float64)
    angle = xp.arange(length, dtype=xp.float64)[:, None] / 10000 ** (even / width)
    table = xp.empty((length, width), xp.float64)
    table[:, 0::2] = xp.sin(angle)
    table[:, 1::2] = xp.cos(angle[:, : width // 2])
    return table.astype(dtype)
