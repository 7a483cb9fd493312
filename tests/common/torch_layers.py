"""Every layer in operations of PyTorch: a function of its parameters ``p`` by path, inputs and settings.

``torch`` is ``torch_operations.Reference``. A default here is the one that the layer is meant to have.
"""

from minitransformer.functional import split_key
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
    PostNormBlock,
    PreNormBlock,
    Relu,
    SelfAttention,
    SinusoidalPositions,
)


def of(p, part):
    """Return the parameters of the layer ``part``, by their paths in it."""
    return {path.removeprefix(f"{part}."): t for path, t in p.items() if path.startswith(f"{part}.")}


def linear(torch, p, x, bias=True):
    return torch.linear(x, p["weight"], p["bias"] if bias else None)


def linear_gelu(torch, p, x, form, bias=True):
    return torch.linear_gelu(x, p["weight"], p["bias"] if bias else None, form)


def layer_norm(torch, p, x, bias=True, eps=1e-5):
    return torch.layer_norm(x, p["gain"], p["bias"] if bias else None, eps)


def add_layer_norm(torch, p, x, residual, bias=True, eps=1e-5):
    return layer_norm(torch, p, x + residual, bias, eps)


def dropout(torch, p, x, rate, key=None):
    return x if key is None else torch.dropout(x, rate, key)


def feed_forward(torch, p, x, activation="gelu_exact", bias=True):
    h = linear(torch, of(p, "hidden.0"), x, bias)
    return linear(torch, of(p, "output"), getattr(torch, activation)(h), bias)


def self_attention(torch, p, x, heads, mask, kv_heads=None, bias=True, dropout=0.0, key=None):
    groups = kv_heads or heads
    packed = linear(torch, of(p, "query_key_value"), x, bias).unflatten(2, (heads + 2 * groups, -1))
    q, k, v = packed.split([heads, groups, groups], dim=2)
    y = torch.attention(q, k, v, mask, dropout=dropout, key=key)
    return linear(torch, of(p, "output"), y.flatten(2), bias)


def cross_attention(torch, p, x, memory, heads, mask, memory_width=None, bias=True, dropout=0.0, key=None):
    q = linear(torch, of(p, "query"), x, bias).unflatten(2, (heads, -1))
    packed = linear(torch, of(p, "key_value"), memory, bias).unflatten(2, (2 * heads, -1))
    y = torch.attention(q, *packed.split(heads, dim=2), mask, dropout=dropout, key=key)
    return linear(torch, of(p, "output"), y.flatten(2), bias)


def pre_norm(torch, p, x, heads, mask, activation="gelu_exact", bias=True, dropout=0.0, eps=1e-5, key=None):
    keys = split_key(key, 3)
    h = layer_norm(torch, of(p, "norm1"), x, bias, eps)
    h = self_attention(torch, of(p, "attention"), h, heads, mask, None, bias, dropout, keys[0])
    x = x + drop(torch, h, dropout, keys[1])
    h = layer_norm(torch, of(p, "norm2"), x, bias, eps)
    return x + drop(torch, feed_forward(torch, of(p, "feed_forward"), h, activation, bias), dropout, keys[2])


def post_norm(torch, p, x, heads, mask, activation="relu", bias=True, dropout=0.0, eps=1e-5, key=None):
    keys = split_key(key, 3)
    h = self_attention(torch, of(p, "attention"), x, heads, mask, None, bias, dropout, keys[0])
    x = layer_norm(torch, of(p, "norm1"), x + drop(torch, h, dropout, keys[1]), bias, eps)
    h = feed_forward(torch, of(p, "feed_forward"), x, activation, bias)
    return layer_norm(torch, of(p, "norm2"), x + drop(torch, h, dropout, keys[2]), bias, eps)


def drop(torch, x, rate, key):
    return dropout(torch, {}, x, rate, key)


REFERENCES = {
    Linear: linear,
    LinearGelu: linear_gelu,
    Embedding: lambda torch, p, ids: torch.embedding(p["table"], ids),
    LearnedPositions: lambda torch, p, x, positions: torch.add_positions(x, p["table"], positions),
    SinusoidalPositions: lambda torch, p, x, positions: torch.add_sinusoids(x, positions),
    LayerNorm: layer_norm,
    AddLayerNorm: add_layer_norm,
    Dropout: dropout,
    Relu: lambda torch, p, x: torch.relu(x),
    FeedForward: feed_forward,
    SelfAttention: self_attention,
    CrossAttention: cross_attention,
    PreNormBlock: pre_norm,
    PostNormBlock: post_norm,
}
