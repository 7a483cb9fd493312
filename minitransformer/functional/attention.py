"""Scaled dot-product attention (Vaswani et al., arXiv 1706.03762, section 3.2), many heads at once."""

import math
from typing import Any, NamedTuple

from minitransformer.arrays import array_module
from minitransformer.functional.dropout import check_rate
from minitransformer.functional.mask import check_mask, visible
from minitransformer.functional.philox import Key, keep_mask
from minitransformer.functional.rules import COMPUTED_AS_THEY_ARE, COMPUTED_IN_FLOAT32, backward, forward

INVISIBLE = -1e30


class AttentionSaved(NamedTuple):
    """What ``attention_backward`` needs. The probabilities are those before dropout."""

    q: Any
    k: Any
    v: Any
    probabilities: Any
    scale: float
    dropout: float
    key: Key | None


@forward
def attention(q, k, v, *, mask, bias=None, scale=None, dropout=0.0, key=None):
    """Return ``softmax(q kᵀ · scale + bias) v``, each head for itself.

    ``q`` (B, Tq, H, K), ``k`` and ``v`` (B, Tk, G, K) → (B, Tq, H, K). H is a multiple of G: each of the G
    key/value heads serves H/G neighbouring query heads (arXiv 2305.13245; G = H is the usual case, G = 1
    multi-query attention). ``mask`` is a ``Mask``; ``bias`` is added to the scores, a constant that
    broadcasts to (B, H, Tq, Tk), where entries ≤ −1e30 mean invisible. ``scale`` is 1/√K unless given.
    ``dropout`` drops probabilities when there is a ``key``. A query that sees no key gives 0.

    With S = q kᵀ·scale + bias, P = softmax(S) by rows, P' = dropout(P) and y = P' v:

        dv = P'ᵀ dy,   dP' = dy vᵀ,   dP = dropout's gradient,
        dS = P · (dP − Σ_j dP·P)   (the gradient of softmax),
        dq = dS k · scale,   dk = dSᵀ q · scale

    What is invisible has P = 0, so dS = 0 there: the mask needs no gradient of its own.
    """
    check_attention("attention", q, k, v, mask, bias)
    check_rate("attention", dropout)
    xp = array_module(q)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    dropout = dropout if key is not None else 0.0

    probabilities = _probabilities(q, k, mask, bias, scale)
    y = xp.empty_like(q, order="C")
    xp.matmul(
        _dropped(probabilities, _keep(probabilities, dropout, key), dropout),
        _heads_of_keys(v),
        out=_heads_of_queries(y, v.shape[2]),
    )
    return y, AttentionSaved(q, k, v, probabilities, scale, dropout, key)


@backward
def attention_backward(dy, saved):
    """Return ``dq, dk, dv``."""
    check_gradient(dy, saved.q)
    xp = array_module(dy)
    q, k, v, probabilities, scale, dropout, key = saved
    groups = k.shape[2]
    dy_heads, q_heads = _heads_of_queries(dy, groups), _heads_of_queries(q, groups)
    dq, dk, dv = (xp.empty_like(array, order="C") for array in (q, k, v))

    keep = _keep(probabilities, dropout, key)
    _sum_of_group(_dropped(probabilities, keep, dropout).swapaxes(-1, -2), dy_heads, out=dv)
    dscores = _dropped(dy_heads @ _heads_of_keys(v).swapaxes(-1, -2), keep, dropout)  # dP so far
    dscores -= (dscores * probabilities).sum(axis=-1, keepdims=True)
    dscores *= probabilities  # now dS
    dscores *= scale
    xp.matmul(dscores, _heads_of_keys(k), out=_heads_of_queries(dq, groups))
    _sum_of_group(dscores.swapaxes(-1, -2), q_heads, out=dk)
    return dq, dk, dv


def attention_weights(q, k, *, mask, bias=None, scale=None):
    """Return the probabilities that ``attention`` weighs the values with, (B, H, Tq, Tk): for drawing.

    Arguments as in ``attention``. It has no backward: nothing is computed from what is drawn.
    """
    return _attention_weights(q, k, mask=mask, bias=bias, scale=scale)[0]


@forward
def _attention_weights(q, k, *, mask, bias, scale):
    check_attention("attention_weights", q, k, k, mask, bias)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    probabilities = _probabilities(q, k, mask, bias, scale)
    return probabilities.reshape(q.shape[0], q.shape[2], q.shape[1], k.shape[1]), None


def _probabilities(q, k, mask, bias, scale):
    """Return softmax(q kᵀ·scale + bias) under the mask, (B, G, H/G, Tq, Tk)."""
    xp = array_module(q)
    groups = k.shape[2]
    scores = _heads_of_queries(q, groups) @ _heads_of_keys(k).swapaxes(-1, -2)
    scores *= scale
    if bias is not None:
        bias = _bias_by_groups(bias, scores.shape)
        if bias.dtype.name in COMPUTED_IN_FLOAT32:
            bias = bias.astype(scores.dtype)
        invisible = bias <= INVISIBLE
        scores += xp.where(invisible, 0, bias)
        xp.copyto(scores, -math.inf, where=invisible)
    seen = visible(xp, mask, q.shape[1], k.shape[1])
    if seen is not None:
        xp.copyto(scores, -math.inf, where=~seen[:, None, None])
    if k.shape[1] == 0:
        return scores

    maximum = scores.max(axis=-1, keepdims=True)
    scores -= xp.where(maximum == -math.inf, 0, maximum)
    xp.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    scores /= xp.where(total == 0, 1, total)
    return scores


def _keep(probabilities, rate, key):
    """Return which entries dropout keeps, in the shape of ``probabilities``; None if it is off."""
    if not rate:
        return None
    batch, groups, per_group, *lengths = probabilities.shape
    keep = keep_mask(array_module(probabilities), key, (batch, groups * per_group, *lengths), rate)
    return keep.reshape(probabilities.shape)


def _dropped(x, keep, rate):
    """Apply dropout to ``x``, or its gradient, which is the same product."""
    if keep is None:
        return x
    dropped = x * keep
    dropped *= 1 / (1 - rate)
    return dropped


def _heads_of_queries(x, groups):
    """View (B, T, H, K) as (B, G, H/G, T, K)."""
    batch, length, heads, width = x.shape
    return x.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)


def _heads_of_keys(x):
    """View (B, T, G, K) as (B, G, 1, T, K), to broadcast over a group's query heads."""
    return x.transpose(0, 2, 1, 3)[:, :, None]


def _sum_of_group(a, b, out):
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


def check_gradient(dy, q):
    """Raise ValueError unless ``dy`` has the shape of ``q``, which is that of the result."""
    if getattr(dy, "shape", None) != q.shape:
        raise ValueError(
            f"attention_backward: dy has shape {getattr(dy, 'shape', None)}; expected that of y, {q.shape}"
        )


def check_attention(name, q, k, v, mask, bias):
    """Raise ValueError unless the shapes of a call of the function ``name`` go together."""
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(
            f"{name}: q, k, v have shapes {q.shape}, {k.shape}, {v.shape}; "
            "expected (B, Tq, H, K) and twice (B, Tk, G, K)"
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
