"""Attention masks: three integers per row of the batch, for every architecture.

Key j is visible to query i of row b if and only if

    j < kv_len[b]  and  (j < prefix_len[b]  or  j ≤ i + offset[b])

============================  =================  ============
attention                     prefix_len         offset
============================  =================  ============
BERT, any encoder             Tk (everything)    0
GPT, causal                   0                  0
GPT with a key/value cache    0                  tokens held before this call
UniLM sequence to sequence    length of source   0
cross-attention               Tk (everything)    0
============================  =================  ============

``kv_len`` excludes the padding on the right. No (T, T) mask is stored.
"""

from typing import Any, NamedTuple

import numpy as np

from minitransformer.arrays import array_module


class Mask(NamedTuple):
    """The mask of a batch: integers, or integer arrays with one entry per row."""

    kv_len: Any  # () or (B,)
    prefix_len: Any = 0  # () or (B,)
    offset: Any = 0  # () or (B,)


def causal_mask(length):
    """Return the mask under which each of ``length`` positions sees itself and the positions before it."""
    return Mask(length, 0, 0)


def full_mask(length):
    """Return the mask under which every query sees the first ``length`` keys (an integer or (B,))."""
    return Mask(length, length, 0)


def visible(xp, mask, query_length, key_length):
    """Return booleans (B or 1, Tq, Tk), True where the query sees the key; None if every query sees all."""
    if _sees_all(mask, query_length, key_length):
        return None
    kv_len, prefix_len, offset = (xp.asarray(part).reshape(-1, 1, 1) for part in mask)
    i = xp.arange(query_length)[:, None]
    j = xp.arange(key_length)
    return (j < kv_len) & ((j < prefix_len) | (j <= i + offset))


def check_mask(function_name, mask, batch):
    """Raise TypeError or ValueError unless ``mask`` is a ``Mask`` of integers or of arrays (B,)."""
    if not isinstance(mask, Mask):
        raise TypeError(
            f"{function_name}: mask is a {type(mask).__name__}; expected a Mask, as causal_mask(T) and "
            "full_mask(T) return (for booleans there is bias: 0 where a key is visible, -1e30 where not)"
        )
    for name, part in zip(mask._fields, mask, strict=True):
        shape = getattr(part, "shape", ())
        if shape not in ((), (1,), (batch,)):
            raise ValueError(
                f"{function_name}: mask.{name} has shape {shape}; expected an integer or shape ({batch},)"
            )


def _sees_all(mask, query_length, key_length):
    if any(array_module(part) is not np for part in mask):
        return False  # reading a value from a GPU would synchronise
    kv_len, prefix_len, offset = (np.asarray(part) for part in mask)
    first_query_sees = np.maximum(prefix_len, offset + 1)
    return bool(query_length and (np.minimum(kv_len, first_query_sees) >= key_length).all())
