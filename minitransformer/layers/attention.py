"""Multi-head attention with its projections (Vaswani et al., arXiv 1706.03762, section 3.2.2)."""

from minitransformer import dispatch
from minitransformer.arrays import array_module
from minitransformer.errors import InputError
from minitransformer.layers.basic import Linear
from minitransformer.parameters import Layer


class SelfAttention(Layer):
    """Every position attends to those visible under ``mask``: ``x`` (B, T, D) → (B, T, D).

    One product makes queries, keys and values; they are views of its result, never copied. With
    ``kv_heads`` < ``heads``, groups of query heads share keys and values.
    """

    def __init__(self, width, heads, kv_heads=None, bias=True, dropout=0.0):
        self.heads = heads
        self.kv_heads = heads if kv_heads is None else kv_heads
        self.head_width = head_width(width, heads, self.kv_heads)
        self.dropout = dropout
        packed_width = (heads + 2 * self.kv_heads) * self.head_width
        self.query_key_value = Linear(width, packed_width, bias)
        self.output = Linear(width, width, bias)

    def __call__(self, x, mask, key=None, cache=None, positions=None):
        """Return the value and ``dy → dx``.

        ``cache`` is a layer's ``KeyValues`` (only under ``inference()``): x holds the new tokens, whose keys
        and values are written there, and the queries attend to all that it holds. ``positions``, (B, T) or,
        the same for every row, (T,), are those of the tokens; without a cache they are not needed.
        """
        packed, packed_backward = self.query_key_value(x)
        q, k, v = self._split(packed)
        if cache is not None:
            k, v = cache.extend(k, v, positions)
        heads, attention_call = dispatch.attention(q, k, v, mask=mask, dropout=self.dropout, key=key)
        y, output_backward = self.output(heads.reshape(x.shape))
        q_shape, packed_shape = q.shape, packed.shape  # the pullback must not hold the arrays

        def backward(dy):
            dheads = output_backward(dy).reshape(q_shape)
            dpacked = array_module(dheads).zeros(packed_shape, dheads.dtype)
            dispatch.attention_backward(dheads, attention_call, add_to=self._split(dpacked))
            return packed_backward(dpacked)

        return y, backward

    def _split(self, packed):
        """View (B, T, (H + 2G) K) as q (B, T, H, K) and k, v (B, T, G, K)."""
        parts = packed.reshape(*packed.shape[:2], -1, self.head_width)
        h, g = self.heads, self.kv_heads
        return parts[:, :, :h], parts[:, :, h : h + g], parts[:, :, h + g :]


class CrossAttention(Layer):
    """Every position of ``x`` attends to the positions of ``memory`` visible under ``mask``.

    ``x`` (B, Tq, D), ``memory`` (B, Tk, M) → (B, Tq, D). The pullback returns ``dx, dmemory``.
    """

    def __init__(self, width, heads, memory_width=None, bias=True, dropout=0.0):
        self.heads = heads
        self.head_width = head_width(width, heads, heads)
        self.dropout = dropout
        self.query = Linear(width, width, bias)
        self.key_value = Linear(memory_width or width, 2 * width, bias)
        self.output = Linear(width, width, bias)

    def __call__(self, x, memory, mask, key=None):
        """Return the value and ``dy → (dx, dmemory)``."""
        queries, query_backward = self.query(x)
        packed, packed_backward = self.key_value(memory)
        q = queries.reshape(*x.shape[:2], self.heads, self.head_width)
        k, v = self._split(packed)
        heads, attention_call = dispatch.attention(q, k, v, mask=mask, dropout=self.dropout, key=key)
        y, output_backward = self.output(heads.reshape(x.shape))
        x_shape, q_shape, packed_shape = x.shape, q.shape, packed.shape

        def backward(dy):
            dheads = output_backward(dy).reshape(q_shape)
            dpacked = array_module(dheads).zeros(packed_shape, dheads.dtype)
            add_to = None, *self._split(dpacked)
            dq, _, _ = dispatch.attention_backward(dheads, attention_call, add_to=add_to)
            return query_backward(dq.reshape(x_shape)), packed_backward(dpacked)

        return y, backward

    def _split(self, packed):
        """View (B, T, 2 H K) as k, v (B, T, H, K)."""
        parts = packed.reshape(*packed.shape[:2], 2 * self.heads, self.head_width)
        return parts[:, :, : self.heads], parts[:, :, self.heads :]


def head_width(width, heads, kv_heads):
    """Return the width of one head; raise InputError if the heads don't divide the width evenly."""
    if heads < 1 or width % heads:
        raise InputError(f"a width of {width} cannot be divided into {heads} heads of equal width")
    if kv_heads < 1 or heads % kv_heads:
        raise InputError(f"{heads} query heads cannot be shared evenly by {kv_heads} key/value heads")
    return width // heads
