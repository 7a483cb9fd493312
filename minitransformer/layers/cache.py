"""The key/value cache: what earlier tokens left behind, so that a new token need not repeat their work."""

from minitransformer.arrays import array_module
from minitransformer.dispatch import is_inference
from minitransformer.functional import Mask


class KeyValues:
    """One layer's keys and values of all tokens so far, (B, P, G, K) each."""

    def __init__(self, xp, batch, capacity, heads, width, dtype):
        self.keys = xp.zeros((batch, capacity, heads, width), dtype)
        self.values = xp.zeros((batch, capacity, heads, width), dtype)

    def extend(self, k, v, mask):
        """Write the new ``k`` and ``v`` (B, T, G, K) at ``mask.offset + i``; return all that is held.

        A row's padding, which lies at ``mask.kv_len`` and beyond, is not written.
        """
        xp = array_module(k)
        place = mask.offset[:, None] + xp.arange(k.shape[1])
        row, i = xp.nonzero(place < mask.kv_len[:, None])
        self.keys[row, place[row, i]] = k[row, i]
        self.values[row, place[row, i]] = v[row, i]
        longest = int(mask.kv_len.max())
        return self.keys[:, :longest], self.values[:, :longest]


class Cache:
    """The ``KeyValues`` of every layer, and ``lengths`` (B,): how many tokens each row holds."""

    def __init__(self, xp, layers, batch, capacity, heads, width, dtype):
        self.layers = [KeyValues(xp, batch, capacity, heads, width, dtype) for _ in range(layers)]
        self.lengths = xp.zeros(batch, "int64")
        self.capacity = capacity

    def mask(self, new_lengths):
        """Return the causal mask of a call that brings ``new_lengths`` (B,) real tokens to each row."""
        if not is_inference():
            raise RuntimeError("a key/value cache has no backward: use it under inference()")
        kv_len = self.lengths + new_lengths
        if int(kv_len.max()) > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} tokens a row; {int(kv_len.max())} would be needed"
            )
        return Mask(kv_len, self.lengths * 0, self.lengths)

    def advance(self, new_lengths):
        """Count ``new_lengths`` (B,) tokens as held, once every layer has written them."""
        self.lengths = self.lengths + new_lengths

    def gather(self, rows):
        """Keep the rows numbered ``rows``, in that order: beam search's choice of parents."""
        self.lengths = self.lengths[rows]
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
