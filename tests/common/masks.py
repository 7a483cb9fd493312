"""Masks: their definition, an entry at a time, and random ones of every kind."""

import numpy as np
from hypothesis import strategies as st

from minitransformer.functional import Mask


def naive_visible(mask, batch, queries, keys):
    """Return the mask (batch, queries, keys), an entry at a time."""
    kv_len, prefix_len, offset = (np.broadcast_to(part, batch).tolist() for part in mask)
    seen = np.zeros((batch, queries, keys), bool)
    for b, i, j in np.ndindex(seen.shape):
        seen[b, i, j] = j < kv_len[b] and (j < prefix_len[b] or j <= i + offset[b])
    return seen


def check_visible(function, mask, batch, queries, keys):
    """Fail unless ``function``, used as ``visible`` is, agrees with the definition."""
    seen = function(np, mask, queries, keys)
    if seen is None:  # all see all
        seen = np.ones((1, queries, keys), bool)
    assert seen.shape[0] in (1, batch)
    np.testing.assert_array_equal(
        np.broadcast_to(seen, (batch, queries, keys)), naive_visible(mask, batch, queries, keys)
    )


@st.composite
def masks(draw, batch, queries, keys):
    """Masks of every kind: rows that see nothing, lengths beyond the end, offsets below zero."""

    def part(low, high):
        if draw(st.booleans()):
            return draw(st.integers(low, high))
        return np.array(draw(st.lists(st.integers(low, high), min_size=batch, max_size=batch)))

    return Mask(part(0, keys + 2), part(0, keys + 2), part(-queries - 1, keys + 1))
