"""Every layer in all its variants."""

import numpy as np

from common.blocks import post_norm_block, pre_norm_block
from minitransformer.functional import Key, Mask, causal_mask, full_mask
from minitransformer.gradcheck import check_layer
from minitransformer.layers import (
    AddLayerNorm,
    CrossAttention,
    Dropout,
    Embedding,
    FeedForward,
    LayerNorm,
    LearnedPositions,
    Linear,
    LinearGelu,
    Relu,
    SelfAttention,
    SinusoidalPositions,
    recompute,
)
from minitransformer.parameters import Layer

KEY = Key(21, 4)
PADDED = Mask(np.array([4, 2]))  # causal, two rows of four
MEMORY = full_mask(np.array([5, 3]))


def draw(*shape, seed=100):
    return np.random.default_rng(seed).normal(size=shape)


def draw_inputs(inputs):
    """Return random arrays for the shapes among ``inputs``, and the rest as it is."""
    return [
        draw(*value, seed=100 + i) if isinstance(value, tuple) else value for i, value in enumerate(inputs)
    ]


class Twice(Layer):
    """A layer applied to what it made itself: its parameters are used twice."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x, **settings):
        x, first_backward = self.layer(x, **settings)
        y, second_backward = self.layer(x, **settings)
        return y, lambda dy: first_backward(second_backward(dy))


class Recomputed(Layer):
    """A layer that saves nothing for its backward."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, *arrays, **settings):
        return recompute(self.layer)(*arrays, **settings)


X = 2, 4, 4
# layer, inputs (shapes, or integer arrays), settings
LAYER_CASES = {
    "Linear": (Linear(4, 3), [X], {}),
    "Linear without bias": (Linear(4, 3, bias=False), [X], {}),
    "LinearGelu exact": (LinearGelu(4, 3, "exact"), [X], {}),
    "LinearGelu tanh without bias": (LinearGelu(4, 3, "tanh", bias=False), [X], {}),
    "Embedding": (Embedding(5, 3), [np.array([[0, 4, 4], [1, 0, 0]])], {}),
    "LearnedPositions": (LearnedPositions(6, 4), [X, np.arange(4)], {}),
    "LearnedPositions by row": (LearnedPositions(6, 4), [X, np.array([[0, 1, 2, 3], [2, 2, 0, 1]])], {}),
    "SinusoidalPositions": (SinusoidalPositions(), [X, np.arange(4)], {}),
    "LayerNorm": (LayerNorm(4), [X], {}),
    "LayerNorm without bias": (LayerNorm(4, bias=False, eps=0.1), [X], {}),
    "AddLayerNorm": (AddLayerNorm(4), [X, X], {}),
    "AddLayerNorm without bias": (AddLayerNorm(4, bias=False, eps=0.1), [X, X], {}),
    "Dropout": (Dropout(0.4), [X], {"key": KEY}),
    "Dropout in evaluation": (Dropout(0.4), [X], {}),
    "Relu": (Relu(), [X], {}),
    "FeedForward exact": (FeedForward(4, 5), [X], {}),
    "FeedForward tanh without bias": (FeedForward(4, 5, "gelu_tanh", bias=False), [X], {}),
    "FeedForward relu": (FeedForward(4, 5, "relu"), [X], {}),
    "SelfAttention": (SelfAttention(4, 2), [X], {"mask": PADDED}),
    "SelfAttention without bias": (SelfAttention(4, 2, bias=False), [X], {"mask": full_mask(4)}),
    "SelfAttention, groups": (SelfAttention(8, 4, 2), [(2, 3, 8)], {"mask": causal_mask(3)}),
    "SelfAttention, dropout": (SelfAttention(4, 2, dropout=0.3), [X], {"mask": PADDED, "key": KEY}),
    "SelfAttention, dropout off": (SelfAttention(4, 2, dropout=0.3), [X], {"mask": PADDED}),
    "CrossAttention": (CrossAttention(4, 2), [(2, 3, 4), (2, 5, 4)], {"mask": MEMORY}),
    "CrossAttention, wider memory": (CrossAttention(4, 2, 6), [(2, 3, 4), (2, 5, 6)], {"mask": MEMORY}),
    "CrossAttention, dropout": (
        CrossAttention(4, 2, bias=False, dropout=0.3),
        [(2, 3, 4), (2, 5, 4)],
        {"mask": MEMORY, "key": KEY},
    ),
    "PreNormBlock": (pre_norm_block(4, 2, 5), [X], {"mask": PADDED}),
    "PreNormBlock, dropout": (pre_norm_block(4, 2, 5, dropout=0.3), [X], {"mask": PADDED, "key": KEY}),
    "PreNormBlock relu": (pre_norm_block(4, 2, 5, "relu", bias=False), [X], {"mask": PADDED}),
    "PostNormBlock": (post_norm_block(4, 2, 5), [X], {"mask": PADDED}),
    "PostNormBlock exact, dropout": (
        post_norm_block(4, 2, 5, "gelu_exact", dropout=0.3),
        [X],
        {"mask": PADDED, "key": KEY},
    ),
    "a layer used twice": (Twice(SelfAttention(4, 2)), [X], {"mask": PADDED}),
    "a norm used twice": (Twice(LayerNorm(4)), [X], {}),
    "recomputation": (Recomputed(pre_norm_block(4, 2, 5)), [X], {"mask": PADDED}),
    "recomputation, dropout": (
        Recomputed(pre_norm_block(4, 2, 5, dropout=0.3)),
        [X],
        {"mask": PADDED, "key": KEY},
    ),
    "recomputation, two inputs": (
        Recomputed(CrossAttention(4, 2)),
        [(2, 3, 4), (2, 5, 4)],
        {"mask": MEMORY},
    ),
}


def check(name):
    """Check the gradients of ``LAYER_CASES[name]``."""
    layer, inputs, settings = LAYER_CASES[name]
    return check_layer(layer.build(dtype="float64"), *draw_inputs(inputs), **settings)
