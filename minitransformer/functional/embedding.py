"""Token embedding: rows of a table, chosen by id."""

from typing import Any, NamedTuple

import numpy as np

from minitransformer.arrays import array_module
from minitransformer.functional.rules import backward, forward


class EmbeddingSaved(NamedTuple):
    """What ``embedding_backward`` needs."""

    ids: Any
    rows: int


@forward
def embedding(table, *, ids):
    """Return ``table[ids]``.

    ``table`` (V, D), ``ids`` integers (…) in [0, V) → (…, D).

    y_n = table_{ids_n}: a row's gradient is the sum over every place where it was used,

        dtable_v = Σ_{n : ids_n = v} dy_n

    which is a scatter-*add*: ``dtable[ids] += dy`` would count a repeated id once.

    Raises ValueError for an id outside the table (on the CPU; a GPU is not asked to wait for this).
    """
    check_ids("embedding", ids, table.shape[0])
    return table[ids], EmbeddingSaved(ids, table.shape[0])


@backward
def embedding_backward(dy, saved, *, add_to=None):
    """Return ``(dtable,)``."""
    xp = array_module(dy)
    dtable = add_to[0] if add_to else None
    if dtable is None:
        dtable = xp.zeros((saved.rows, dy.shape[-1]), dy.dtype)
    xp.add.at(dtable, saved.ids.reshape(-1), dy.reshape(-1, dy.shape[-1]))
    return (dtable,)


def check_ids(function_name, ids, limit):
    """Raise ValueError naming the first of ``ids`` that is not in [0, ``limit``); only on the CPU."""
    if array_module(ids) is not np or ids.size == 0:
        return
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{function_name}: ids have type {ids.dtype.name}; expected integers")
    if ids.min() < 0 or ids.max() >= limit:
        place = np.argwhere((ids < 0) | (ids >= limit))[0]
        raise ValueError(
            f"{function_name}: id {ids[tuple(place)]} at index {tuple(place.tolist())} is out of range; "
            f"expected 0 to {limit - 1}"
        )
