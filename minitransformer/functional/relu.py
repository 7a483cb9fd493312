"""The rectifier: ReLU(x) = max(x, 0)."""

from typing import Any, NamedTuple

from minitransformer.arrays import array_module
from minitransformer.functional.rules import backward, check_gradient, forward


class ReluSaved(NamedTuple):
    """What ``relu_backward`` needs."""

    positive: Any  # (…), booleans
    dtype: Any  # of x


@forward
def relu(x):
    """Return ``max(x, 0)``, element by element.

    ``x`` (…) → (…). The slope is 1 where x > 0 and 0 where x < 0; at x = 0 it is taken as 0, as in PyTorch:

        dx = dy · positive,   positive = (x > 0)
    """
    xp = array_module(x)
    positive = x > 0
    return xp.maximum(x, 0), ReluSaved(positive, x.dtype)


@backward
def relu_backward(dy, saved):
    """Return ``(dx,)``."""
    check_gradient("relu_backward", dy, saved.positive.shape)
    dx = dy * saved.positive
    return (dx,)
