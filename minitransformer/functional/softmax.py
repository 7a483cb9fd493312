"""Softmax and log-softmax over the last axis."""

from typing import Any, NamedTuple

from minitransformer.arrays import array_module
from minitransformer.functional.rules import backward, forward


class SoftmaxSaved(NamedTuple):
    """What ``softmax_backward`` needs."""

    y: Any  # (…, V)


@forward
def softmax(x):
    """Return ``y = exp(x) / Σ exp(x)`` over the last axis.

    ``x`` (…, V) → (…, V). Subtracting the row's maximum first changes nothing in the quotient and keeps
    every exponent ≤ 0, so that no exponential overflows.

    ∂y_i/∂x_j = y_i (δ_ij − y_j), hence dx_j = Σ_i dy_i ∂y_i/∂x_j = y_j (dy_j − Σ_i dy_i y_i).
    """
    xp = array_module(x)
    y = x - x.max(axis=-1, keepdims=True)  # x − max(x)
    xp.exp(y, out=y)  # exp(x − max(x))
    y /= y.sum(axis=-1, keepdims=True)  # y
    return y, SoftmaxSaved(y)


@backward
def softmax_backward(dy, saved):
    """Return ``(dx,)``."""
    y = saved.y
    dx = y * (dy - (dy * y).sum(axis=-1, keepdims=True))
    return (dx,)


class LogSoftmaxSaved(NamedTuple):
    """What ``log_softmax_backward`` needs."""

    y: Any  # (…, V)


@forward
def log_softmax(x):
    """Return ``y = x − log Σ exp(x)`` over the last axis.

    ``x`` (…, V) → (…, V). Never computed as log(softmax(x)): a probability that underflows would give −∞.

    ∂y_i/∂x_j = δ_ij − softmax(x)_j, hence dx_j = dy_j − exp(y_j) Σ_i dy_i.
    """
    xp = array_module(x)
    y = x - x.max(axis=-1, keepdims=True)  # x − max(x)
    y -= xp.log(xp.exp(y).sum(axis=-1, keepdims=True))  # y
    return y, LogSoftmaxSaved(y)


@backward
def log_softmax_backward(dy, saved):
    """Return ``(dx,)``."""
    xp = array_module(dy)
    y = saved.y
    dx = dy - xp.exp(y) * dy.sum(axis=-1, keepdims=True)
    return (dx,)
