"""The Gaussian error linear unit (Hendrycks & Gimpel, arXiv 1606.08415), in both of its forms.

They differ by up to 4.7e-4, so each has its own name: BERT and nanoGPT use ``gelu_exact``, GPT-2
``gelu_tanh``. Weights trained with one are wrong with the other.
"""

import math
from typing import Any, NamedTuple

from minitransformer.arrays import array_module, erf
from minitransformer.functional.rules import backward, forward


class GeluExactSaved(NamedTuple):
    """What ``gelu_exact_backward`` needs. Φ(x) is kept: it is the costly part."""

    x: Any
    cumulative: Any


@forward
def gelu_exact(x):
    """Return ``x Φ(x)``, Φ the standard normal distribution function: Φ(x) = (1 + erf(x/√2)) / 2.

    ``x`` (…) → (…). By the product rule dy/dx = Φ(x) + x φ(x), with the density φ(x) = exp(−x²/2)/√(2π).
    """
    cumulative = erf(x * math.sqrt(0.5))
    cumulative += 1
    cumulative *= 0.5
    return x * cumulative, GeluExactSaved(x, cumulative)


@backward
def gelu_exact_backward(dy, saved):
    """Return ``(dx,)``."""
    xp = array_module(dy)
    x, cumulative = saved
    slope = xp.exp(-0.5 * xp.square(x))
    slope *= x
    slope *= 1 / math.sqrt(2 * math.pi)
    slope += cumulative
    slope *= dy
    return (slope,)


CUBIC = 0.044715
SCALE = math.sqrt(2 / math.pi)


class GeluTanhSaved(NamedTuple):
    """What ``gelu_tanh_backward`` needs."""

    x: Any
    tanh: Any


@forward
def gelu_tanh(x):
    """Return ``x (1 + tanh u) / 2`` with ``u = √(2/π) (x + 0.044715 x³)``.

    ``x`` (…) → (…). With t = tanh u, dt/du = 1 − t² and du/dx = √(2/π) (1 + 3 · 0.044715 x²):

        dy/dx = (1 + t)/2 + x (1 − t²)/2 · du/dx
    """
    xp = array_module(x)
    u = xp.square(x)
    u *= CUBIC
    u += 1
    u *= x
    u *= SCALE
    tanh = xp.tanh(u)
    y = 1 + tanh
    y *= x
    y *= 0.5
    return y, GeluTanhSaved(x, tanh)


@backward
def gelu_tanh_backward(dy, saved):
    """Return ``(dx,)``."""
    xp = array_module(dy)
    x, tanh = saved
    slope = xp.square(x)
    slope *= 3 * CUBIC
    slope += 1
    slope *= SCALE
    slope *= x
    slope *= 1 - xp.square(tanh)
    slope += tanh
    slope += 1
    slope *= 0.5
    slope *= dy
    return (slope,)
