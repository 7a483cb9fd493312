"""Feed-forward layers and transformer blocks, pre-norm and post-norm."""

from minitransformer.dispatch import inference
from minitransformer.functional import split_key
from minitransformer.layers.attention import SelfAttention
from minitransformer.layers.basic import AddLayerNorm, Dropout, LayerNorm, Linear, LinearGelu, Relu
from minitransformer.parameters import Layer

ACTIVATIONS = ("gelu_exact", "gelu_tanh", "relu")


class FeedForward(Layer):
    """activation(x W₁ + b₁) W₂ + b₂: ``x`` (…, D) → (…, D), through F hidden units (1706.03762, 3.3)."""

    def __init__(
        self, width, hidden_width, activation="gelu_exact", bias=True, deviation=0.02, out_deviation=0.02
    ):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
        if activation == "relu":
            self.hidden = [Linear(width, hidden_width, bias, deviation), Relu()]
        else:
            form = activation.removeprefix("gelu_")
            self.hidden = [LinearGelu(width, hidden_width, form, bias, deviation)]
        self.output = Linear(hidden_width, width, bias, out_deviation)

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
    """x + attention(norm(x)), then x + feed_forward(norm(x)): GPT-2's block. (B, T, D) → (B, T, D)."""

    def __init__(
        self,
        width,
        heads,
        hidden_width,
        activation="gelu_exact",
        bias=True,
        dropout=0.0,
        eps=1e-5,
        deviation=0.02,
        out_deviation=0.02,
    ):
        self.norm1 = LayerNorm(width, bias, eps)
        self.attention = SelfAttention(
            width, heads, bias=bias, dropout=dropout, deviation=deviation, out_deviation=out_deviation
        )
        self.norm2 = LayerNorm(width, bias, eps)
        self.feed_forward = FeedForward(width, hidden_width, activation, bias, deviation, out_deviation)
        self.dropout = Dropout(dropout)

    def __call__(self, x, mask, key=None, cache=None):
        attention_key, dropout1_key, dropout2_key = split_key(key, 3)
        h, norm1_backward = self.norm1(x)
        h, attention_backward = self.attention(h, mask, attention_key, cache)
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
    """norm(x + attention(x)), then norm(x + feed_forward(x)): the block of the 2017 paper and of BERT."""

    def __init__(
        self,
        width,
        heads,
        hidden_width,
        activation="relu",
        bias=True,
        dropout=0.0,
        eps=1e-5,
        deviation=0.02,
        out_deviation=0.02,
    ):
        self.attention = SelfAttention(
            width, heads, bias=bias, dropout=dropout, deviation=deviation, out_deviation=out_deviation
        )
        self.norm1 = AddLayerNorm(width, bias, eps)
        self.feed_forward = FeedForward(width, hidden_width, activation, bias, deviation, out_deviation)
        self.norm2 = AddLayerNorm(width, bias, eps)
        self.dropout = Dropout(dropout)

    def __call__(self, x, mask, key=None, cache=None):
        attention_key, dropout1_key, dropout2_key = split_key(key, 3)
        h, attention_backward = self.attention(x, mask, attention_key, cache)
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


class Recomputed(Layer):
    """A layer with a forward that saves nothing: its backward runs the forward once more.

    Memory for time (Chen et al., arXiv 1604.06174). Dropout draws the same masks again: they depend on the
    key alone.
    """

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, *arrays, **settings):
        with inference():
            y, _ = self.layer(*arrays, **settings)

        def backward(*dy):
            _, layer_backward = self.layer(*arrays, **settings)
            return layer_backward(*dy)

        return y, backward


def recompute(layer):
    """Return ``layer`` as a ``Recomputed`` one, of the same parameters."""
    return Recomputed(layer)
