"""Feed-forward layers and transformer blocks, pre-norm and post-norm."""

from minitransformer.dispatch import inference, is_reference, saving
from minitransformer.functional import split_key
from minitransformer.layers.basic import Linear, LinearGelu, Relu
from minitransformer.parameters import Layer, Wrapper

ACTIVATIONS = ("gelu_exact", "gelu_tanh", "relu")


class FeedForward(Layer):
    """activation(x W₁ + b₁) W₂ + b₂: ``x`` (…, D) → (…, D), through F hidden units (1706.03762, 3.3)."""

    def __init__(self, width, hidden_width, activation="gelu_exact", bias=True):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
        if activation == "relu":
            self.hidden = [Linear(width, hidden_width, bias), Relu()]
        else:
            form = activation.removeprefix("gelu_")
            self.hidden = [LinearGelu(width, hidden_width, form, bias)]
        self.output = Linear(hidden_width, width, bias)

    def __call__(self, x):
        backwards = []
        for layer in (*self.hidden, self.output):
            x, layer_backward = layer(x)
            backwards.append(layer_backward)

        def backward(dy):
            for layer_backward in reversed(backwards):
                dy = layer_backward(dy)
            return dy

        return x, backward


class PreNormBlock(Layer):
    """x + attention(norm1(x)), then x + feed_forward(norm2(x)): GPT-2's block. (B, T, D) → (B, T, D).

    It is made of layers: two ``LayerNorm``, a ``SelfAttention``, a ``FeedForward`` and a ``Dropout``, which
    is applied to what is added.
    """

    def __init__(self, norm1, attention, norm2, feed_forward, dropout):
        self.norm1, self.attention = norm1, attention
        self.norm2, self.feed_forward = norm2, feed_forward
        self.dropout = dropout

    def __call__(self, x, mask, key=None, cache=None, positions=None):
        attention_key, dropout1_key, dropout2_key = split_key(key, 3)
        h, norm1_backward = self.norm1(x)
        h, attention_backward = self.attention(h, mask, attention_key, cache, positions)
        h, dropout1_backward = self.dropout(h, dropout1_key)
        x = x + h
        h, norm2_backward = self.norm2(x)
        h, feed_forward_backward = self.feed_forward(h)
        h, dropout2_backward = self.dropout(h, dropout2_key)
        y = x + h

        def backward(dy):
            dx = dy + norm2_backward(feed_forward_backward(dropout2_backward(dy)))
            return dx + norm1_backward(attention_backward(dropout1_backward(dx)))

        return y, backward


class PostNormBlock(Layer):
    """norm1(x + attention(x)), then norm2(x + feed_forward(x)): the block of the 2017 paper and of BERT.

    It is made of layers as ``PreNormBlock`` is, with two ``AddLayerNorm``: (B, T, D) → (B, T, D).
    """

    def __init__(self, attention, norm1, feed_forward, norm2, dropout):
        self.attention, self.norm1 = attention, norm1
        self.feed_forward, self.norm2 = feed_forward, norm2
        self.dropout = dropout

    def __call__(self, x, mask, key=None, cache=None, positions=None):
        attention_key, dropout1_key, dropout2_key = split_key(key, 3)
        h, attention_backward = self.attention(x, mask, attention_key, cache, positions)
        h, dropout1_backward = self.dropout(h, dropout1_key)
        x, norm1_backward = self.norm1(h, x)
        h, feed_forward_backward = self.feed_forward(x)
        h, dropout2_backward = self.dropout(h, dropout2_key)
        y, norm2_backward = self.norm2(h, x)

        def backward(dy):
            dh, dx = norm2_backward(dy)
            dx = dx + feed_forward_backward(dropout2_backward(dh))
            dh, dx = norm1_backward(dx)
            return dx + attention_backward(dropout1_backward(dh))

        return y, backward


class Recomputed(Wrapper):
    """A layer with a forward that saves nothing: its backward runs the forward once more.

    Memory for time (Chen et al., arXiv 1604.06174). Dropout draws the same masks again: they depend on the
    key alone.
    """

    def __call__(self, *arrays, **settings):
        with inference():
            y, _ = self.layer(*arrays, **settings)
        reference = is_reference()

        def backward(*dy):
            with saving(reference):  # as the forward ran, wherever the backward does
                _, layer_backward = self.layer(*arrays, **settings)
            return layer_backward(*dy)

        return y, backward


def recompute(layer):
    """Return ``layer`` as a ``Recomputed`` one, of the same parameters."""
    return Recomputed(layer)
