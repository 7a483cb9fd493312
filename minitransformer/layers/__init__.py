"""Layers: parameters and composition. Called, each returns its value and its pullback."""

from minitransformer.layers.attention import CrossAttention, SelfAttention
from minitransformer.layers.basic import (
    AddLayerNorm,
    Dropout,
    Embedding,
    LayerNorm,
    LearnedPositions,
    Linear,
    LinearGelu,
    Relu,
    SinusoidalPositions,
)
from minitransformer.layers.blocks import FeedForward, PostNormBlock, PreNormBlock, recompute
from minitransformer.layers.cache import Cache

__all__ = [
    "AddLayerNorm",
    "Cache",
    "CrossAttention",
    "Dropout",
    "Embedding",
    "FeedForward",
    "LayerNorm",
    "LearnedPositions",
    "Linear",
    "LinearGelu",
    "PostNormBlock",
    "PreNormBlock",
    "Relu",
    "SelfAttention",
    "SinusoidalPositions",
    "recompute",
]
