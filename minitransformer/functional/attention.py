"""Scaled dot-product attention (Vaswani et al., arXiv 1706.03762, section 3.2), many heads at once."""

import math
from typing import Any, NamedTuple

from minitransformer.arrays import array_module
from minitransformer.functional.dropout import check_rate, drop
from minitransformer.functional.mask import check_mask, visible
from minitransformer.functional.philox import Key, keep_mask
from minitransformer.functional.rules import (
    COMPUTED_AS_THEY_ARE,
    COMPUTED_IN_FLOAT32,
    backward,
    check_gradient,
    forward,
)

INVISIBLE = -1e30


class AttentionSaved(NamedTuple):
    """What ``attention_backward`` needs."""

    q: Any  # (B, Tq, H, K)
    k: Any  # (B, Tk, G, K)
    v: Any  # (B, Tk, G, K)
    p: Any  # (B, G, H/G, Tq, Tk), before dropout
    scale: float
    dropout: float
    key: Key | None


@forward
def attention(q, k, v, *, mask, bias=None, scale=None, dropout=0.0, key=None):
    """Return ``softmax(q kᵀ · scale + bias) v``, computed separately for each head.

    ``q`` (B, Tq, H, K), ``k`` and ``v`` (B, Tk, G, K) → (B, Tq, H, K). H is a multiple of G: each of the G
    key/value heads serves H/G consecutive query heads (arXiv 2305.13245; G = H is the usual case, G = 1
    multi-query attention). ``mask`` is a ``Mask``; ``bias`` is added to the scores, a constant that
    broadcasts to (B, H, Tq, Tk), where entries ≤ −1e30 mean invisible. ``scale`` is 1/√K unless given.
    ``dropout`` drops probabilities when there is a ``key``. A query that sees no key gives 0.

    With scores s, probabilities p and weights w, each (Tq, Tk) for a head,

        s = q kᵀ · scale + bias,   p = softmax(s) over keys,   w = dropout(p),   y = w v

    the backward undoes these from the last to the first:

        dv = wᵀ dy,   dw = dy vᵀ
        dp = dw · keep / (1 − dropout)
        ds = p · (dp − Σ_j dp · p)
        dq = ds k · scale,   dk = dsᵀ q · scale

    Where a key is invisible p = 0, so ds = 0: the mask needs no gradient of its own.
    """
    check_attention("attention", q, k, v, mask, bias)
    check_rate("attention", dropout)
    xp = array_module(q)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    dropout = dropout if key is not None else 0.0

    p = _probabilities(q, k, mask, bias, scale)  # (B, G, H/G, Tq, Tk)
    w = drop(p, _keep_mask(p, dropout, key), dropout)  # (B, G, H/G, Tq, Tk)
    y = xp.empty_like(q, order="C")  # (B, Tq, H, K)
    xp.matmul(w, _heads_of_keys(v), out=_heads_of_queries(y, v.shape[2]))
    return y, AttentionSaved(q, k, v, p, scale, dropout, key)


@backward
def attention_backward(dy, saved):
    """Return ``dq, dk, dv``."""
    check_gradient("attention_backward", dy, saved.q.shape)
    xp = array_module(dy)
    q, k, v, p, scale, dropout, key = saved
    kv_heads = k.shape[2]
    dq, dk, dv = (xp.empty_like(array, order="C") for array in (q, k, v))
    dy_heads, q_heads = _heads_of_queries(dy, kv_heads), _heads_of_queries(q, kv_heads)  # (B, G, H/G, Tq, K)
    k_heads, v_heads = _heads_of_keys(k), _heads_of_keys(v)  # (B, G, 1, Tk, K)

    # w = dropout(p), y = w v
    keep = _keep_mask(p, dropout, key)  # (B, G, H/G, Tq, Tk), as in the forward
    _sum_groups(drop(p, keep, dropout).swapaxes(-1, -2), dy_heads, out=dv)  # wᵀ dy
    dp = drop(dy_heads @ v_heads.swapaxes(-1, -2), keep, dropout)  # dw · keep / (1 − dropout), dw = dy vᵀ

    # p = softmax(s)
    ds = dp  # (B, G, H/G, Tq, Tk), written over dp:
    ds -= (dp * p).sum(axis=-1, keepdims=True)  # dp − Σ_j dp · p
    ds *= p  # ds

    # s = q kᵀ · scale + bias
    ds *= scale  # ds · scale
    xp.matmul(ds, k_heads, out=_heads_of_queries(dq, kv_heads))  # ds k · scale
    _sum_groups(ds.swapaxes(-1, -2), q_heads, out=dk)  # dsᵀ q · scale
    return dq, dk, dv


def attention_weights(q, k, *, mask, bias=None, scale=None):
    """Return the probabilities p of ``attention``, (B, H, Tq, Tk), to plot them.

    Arguments as in ``attention``. There is no backward, since no loss depends on a plot.
    """
    return _attention_weights(q, k, mask=mask, bias=bias, scale=scale)[0]


@forward
def _attention_weights(q, k, *, mask, bias, scale):
    check_attention("attention_weights", q, k, k, mask, bias)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    p = _probabilities(q, k, mask, bias, scale)
    return p.reshape(q.shape[0], q.shape[2], q.shape[1], k.shape[1]), None


def _probabilities(q, k, mask, bias, scale):
    """Return p = softmax(s) with s = q kᵀ · scale + bias, −∞ where invisible, (B, G, H/G, Tq, Tk)."""
    xp = array_module(q)
    s = _heads_of_queries(q, k.shape[2]) @ _heads_of_keys(k).swapaxes(-1, -2)  # (B, G, H/G, Tq, Tk)
    s *= scale  # q kᵀ · scale
    if bias is not None:
        bias = _bias_by_groups(bias, s.shape)  # broadcasts to (B, G, H/G, Tq, Tk)
        if bias.dtype.name in COMPUTED_IN_FLOAT32:
            bias = bias.astype(s.dtype)
        invisible = bias <= INVISIBLE
        s += xp.where(invisible, 0, bias)  # q kᵀ · scale + bias
        xp.copyto(s, -math.inf, where=invisible)
    seen = visible(xp, mask, q.shape[1], k.shape[1])  # (B or 1, Tq, Tk)
    if seen is not None:
        xp.copyto(s, -math.inf, where=~seen[:, None, None])
    if k.shape[1] == 0:
        return s

    p = s  # written over s:
    maximum = s.max(axis=-1, keepdims=True)  # (B, G, H/G, Tq, 1)
    p -= xp.where(maximum == -math.inf, 0, maximum)  # s − max(s)
    xp.exp(p, out=p)  # exp(s − max(s))
    total = p.sum(axis=-1, keepdims=True)  # (B, G, H/G, Tq, 1), 0 where a query sees no key
    p /= xp.where(total == 0, 1, total)  # p
    return p


def _keep_mask(p, rate, key):
    """Return which entries of ``p`` (B, G, H/G, Tq, Tk) dropout keeps; None if the rate is 0."""
    if not rate:
        return None
    batch, kv_heads, group_size, *lengths = p.shape
    return keep_mask(array_module(p), key, (batch, kv_heads * group_size, *lengths), rate).reshape(p.shape)


def _heads_of_queries(x, kv_heads):
    """View (B, T, H, K) as (B, G, H/G, T, K)."""
    batch, length, heads, width = x.shape
    return x.reshape(batch, length, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)


def _heads_of_keys(x):
    """View (B, T, G, K) as (B, G, 1, T, K), to broadcast over a group's query heads."""
    return x.transpose(0, 2, 1, 3)[:, :, None]


def _sum_groups(a, b, out):
    """Write ``a @ b``, summed over the query heads of each group, to ``out`` (B, T, G, K)."""
    xp = array_module(a)
    if a.shape[2] == 1:
        xp.matmul(a, b, out=_heads_of_keys(out))
    else:
        xp.sum(a @ b, axis=2, out=out.transpose(0, 2, 1, 3))


def _bias_by_groups(bias, shape):
    """View an additive bias that broadcasts to (B, H, Tq, Tk) as one that broadcasts to ``shape``."""
    bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    heads = shape[1:3] if bias.shape[1] > 1 else (1, 1)
    return bias.reshape(bias.shape[0], *heads, *bias.shape[2:])


def check_attention(name, q, k, v, mask, bias):
    """Raise ValueError unless the shapes given to the function ``name`` are compatible."""
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(
            f"{name}: q, k, v have shapes {q.shape}, {k.shape}, {v.shape}; "
            "expected q (B, Tq, H, K), k and v (B, Tk, G, K)"
        )
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"{name}: q {q.shape} and k {k.shape} differ in batch or head width")
    if q.shape[3] == 0:
        raise ValueError(f"{name}: q {q.shape} has heads of width 0; expected at least 1")
    if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(
            f"{name}: {q.shape[2]} query heads over {k.shape[2]} key/value heads; expected a multiple"
        )
    check_mask(name, mask, q.shape[0])
    if bias is None:
        return
    full = q.shape[0], q.shape[2], q.shape[1], k.shape[1]
    fits = bias.ndim <= 4 and all(
        one in (1, whole) for one, whole in zip(bias.shape[::-1], full[::-1], strict=False)
    )
    if bias.dtype.name not in COMPUTED_AS_THEY_ARE + COMPUTED_IN_FLOAT32 or not fits:
        raise ValueError(
            f"{name}: bias is a {bias.dtype.name} array of shape {bias.shape}; expected floats, added to the "
            f"scores, that broadcast to {full} (for a mask of booleans: 0 where visible, -1e30 where not)"
        )
