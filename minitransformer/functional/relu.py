"""The rectifier: ReLU(x) = max(x, 0)."""

from typing import Any, NamedTuple

from minitransformer.arrays import array_module
from minitransformer.functional.rules import backward, forward


class ReluSaved(NamedTuple):
    """What ``relu_backward`` needs."""

    positive: Any


@forward
def relu(x):
    """Return ``max(x, 0)``, element by element.

    ``x`` (…) → (…). The slope is 1 where x > 0 and 0 where x < 0; at the kink, 0, as everywhere else in
    the field. So dx = dy · [x > 0].
    """
    xp = array_module(x)
    return xp.maximum(x, 0), ReluSaved(x > 0)


@backward
def relu_backward(dy, saved):
    """Return ``(dx,)``."""
    return (dy * saved.positive,)
