"""Token embedding: rows of a table, chosen by id."""

from typing import Any, NamedTuple

from minitransformer.arrays import array_module
from minitransformer.functional.rules import backward, check_gradient, check_ids, forward


class EmbeddingSaved(NamedTuple):
    """What ``embedding_backward`` needs."""

    ids: Any  # (…)
    rows: int  # V
    shape: tuple  # of y
    dtype: Any  # of y


@forward
def embedding(table, *, ids):
    """Return ``table[ids]``.

    ``table`` (V, D), ``ids`` integers (…) in [0, V) → (…, D).

    y_n = table_{ids_n}: a row's gradient is the sum over every place where it was used,

        dtable_v = Σ_{n : ids_n = v} dy_n

    which is a scatter-*add*: ``dtable[ids] += dy`` would count a repeated id once.

    Raises ValueError for an id outside the table (on the CPU only; on a GPU the check would synchronise).
    """
    check_ids("embedding", ids, table.shape[0])
    y = table[ids]
    return y, EmbeddingSaved(ids, table.shape[0], y.shape, y.dtype)


@backward
def embedding_backward(dy, saved, *, add_to=None):
    """Return ``(dtable,)``."""
    check_gradient("embedding_backward", dy, saved.shape)
    owner = add_to[0] if add_to else None
    dtable = add_rows(owner, saved.rows, saved.ids, dy)
    return (dtable,)


def add_rows(owner, count, ids, rows):
    """Add ``rows`` (…, D) to the rows ``ids`` (…) of ``owner`` (``count``, D), or of zeros; return it.

    An ``owner`` of another type than ``rows`` is added to once, after summation: sums in a half type stop
    growing. On a GPU the order of the additions, and so the last bit of a sum, differs from run to run.
    """
    if owner is not None and owner.dtype != rows.dtype:
        owner += add_rows(None, count, ids, rows)
        return owner
    xp = array_module(rows)
    width = rows.shape[-1]
    if owner is None:
        owner = xp.zeros((count, width), rows.dtype)
    xp.add.at(owner, ids.reshape(-1), rows.reshape(-1, width))
    return owner
