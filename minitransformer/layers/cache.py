"""The key/value cache: keys and values of earlier tokens, so that a new token need not compute them again."""

from minitransformer.arrays import array_module
from minitransformer.dispatch import is_inference


class KeyValues:
    """One layer's keys and values of all tokens so far, (B, P, G, K) each, by position."""

    def __init__(self, xp, batch, capacity, kv_heads, head_width, dtype):
        self.keys = xp.zeros((batch, capacity, kv_heads, head_width), dtype)
        self.values = xp.zeros((batch, capacity, kv_heads, head_width), dtype)
        self.end = 0  # the first position at which no row holds anything

    def extend(self, k, v, positions):
        """Write the new ``k`` and ``v`` (B, T, G, K) at ``positions``; return all that is held.

        ``positions`` are (B, T), or (T,) for all rows. What stood at a position is replaced. Positions beyond
        the capacity, where only padding can lie, are not written. Raises RuntimeError outside of
        ``inference()``.
        """
        if positions is None:
            raise ValueError("KeyValues.extend: positions is None; expected (B, T), where to write")
        if not is_inference():
            raise RuntimeError("a key/value cache has no backward: use it under inference()")
        xp, capacity = array_module(k), self.keys.shape[1]
        if positions.ndim == 1:
            positions = xp.broadcast_to(positions, k.shape[:2])
        end, row = int(positions.max()) + 1, xp.arange(len(k))[:, None]
        if end > capacity:
            row, i = xp.nonzero(positions < capacity)
            positions, k, v = positions[row, i], k[row, i], v[row, i]
        self.keys[row, positions] = k
        self.values[row, positions] = v
        self.end = max(self.end, min(end, capacity))
        return self.keys[:, : self.end], self.values[:, : self.end]


class Cache:
    """The ``KeyValues`` of every layer, and ``lengths`` (B,): how many tokens each row holds."""

    def __init__(self, xp, layers, batch, capacity, kv_heads, head_width, dtype):
        self.layers = [KeyValues(xp, batch, capacity, kv_heads, head_width, dtype) for _ in range(layers)]
        self.lengths = xp.zeros(batch, "int64")
        self.capacity = capacity

    def compute_lengths(self, new_lengths):
        """Return the lengths (B,) after ``new_lengths`` (B,) more tokens.

        The model sets ``lengths`` to them when every layer has written its keys and values. Raises ValueError
        if a row would hold more than the capacity.
        """
        lengths = self.lengths + new_lengths
        if int(lengths.max()) > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} tokens per row; {int(lengths.max())} would be needed"
            )
        return lengths

    def gather(self, rows):
        """Keep the rows numbered ``rows``, in that order: beam search's choice of parents."""
        self.lengths = self.lengths[rows]
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
