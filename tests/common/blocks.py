"""Whole blocks by their sizes."""

from minitransformer.layers import (
    AddLayerNorm,
    Dropout,
    FeedForward,
    LayerNorm,
    PostNormBlock,
    PreNormBlock,
    SelfAttention,
)


def pre_norm_block(width, heads, hidden_width, activation="gelu_exact", bias=True, dropout=0.0, eps=1e-5):
    return PreNormBlock(
        LayerNorm(width, bias, eps),
        SelfAttention(width, heads, bias=bias, dropout=dropout),
        LayerNorm(width, bias, eps),
        FeedForward(width, hidden_width, activation, bias),
        Dropout(dropout),
    )


def post_norm_block(width, heads, hidden_width, activation="relu", bias=True, dropout=0.0, eps=1e-5):
    return PostNormBlock(
        SelfAttention(width, heads, bias=bias, dropout=dropout),
        AddLayerNorm(width, bias, eps),
        FeedForward(width, hidden_width, activation, bias),
        AddLayerNorm(width, bias, eps),
        Dropout(dropout),
    )
