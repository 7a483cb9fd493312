"""The Gaussian error linear unit (Hendrycks & Gimpel, arXiv 1606.08415), in both of its forms.

They differ by up to 4.7e-4, so each has its own name: BERT and nanoGPT use ``gelu_exact``, GPT-2
``gelu_tanh``. Weights trained with one are wrong with the other.
"""

import math
from typing import Any, NamedTuple

from minitransformer.arrays import array_module, erf
from minitransformer.functional.rules import backward, forward


class GeluExactSaved(NamedTuple):
    """What ``gelu_exact_backward`` needs. Φ(x) is kept because it is the most expensive term."""

    x: Any  # (…)
    cdf: Any  # (…), Φ(x)


@forward
def gelu_exact(x):
    """Return ``x Φ(x)``, Φ the standard normal distribution function: Φ(x) = (1 + erf(x/√2)) / 2.

    ``x`` (…) → (…). By the product rule, with the density φ(x) = exp(−x²/2)/√(2π),

        dx = dy · (Φ(x) + x φ(x))

    Φ(x) is ``cdf``. For speed both passes work in place: each line ends with the term that its array now
    holds.
    """
    cdf = erf(x * math.sqrt(0.5))  # erf(x/√2)
    cdf += 1  # 1 + erf(x/√2)
    cdf *= 0.5  # Φ(x)
    return x * cdf, GeluExactSaved(x, cdf)


@backward
def gelu_exact_backward(dy, saved):
    """Return ``(dx,)``."""
    xp = array_module(dy)
    x, cdf = saved
    dx = xp.exp(-0.5 * xp.square(x))  # exp(−x²/2)
    dx *= x  # x exp(−x²/2)
    dx *= 1 / math.sqrt(2 * math.pi)  # x φ(x)
    dx += cdf  # Φ(x) + x φ(x)
    dx *= dy  # dx
    return (dx,)


CUBIC = 0.044715
SCALE = math.sqrt(2 / math.pi)


class GeluTanhSaved(NamedTuple):
    """What ``gelu_tanh_backward`` needs."""

    x: Any  # (…)
    t: Any  # (…), tanh u


@forward
def gelu_tanh(x):
    """Return ``x (1 + t) / 2`` with t = tanh u, u = SCALE · (x + CUBIC · x³).

    ``x`` (…) → (…). SCALE = √(2/π), CUBIC = 0.044715. By the product and the chain rule, with dt/du = 1 − t²
    and du/dx = SCALE · (1 + 3 CUBIC · x²),

        dx = dy · (1 + t + x (1 − t²) · du/dx) / 2

    Both passes work in place, as in ``gelu_exact``.
    """
    xp = array_module(x)
    u = xp.square(x)  # x²
    u *= CUBIC  # CUBIC · x²
    u += 1  # 1 + CUBIC · x²
    u *= x  # x + CUBIC · x³
    u *= SCALE  # u
    t = xp.tanh(u)
    y = 1 + t  # 1 + t
    y *= x  # x (1 + t)
    y *= 0.5  # y
    return y, GeluTanhSaved(x, t)


@backward
def gelu_tanh_backward(dy, saved):
    """Return ``(dx,)``."""
    xp = array_module(dy)
    x, t = saved
    dx = xp.square(x)  # x²
    dx *= 3 * CUBIC  # 3 CUBIC · x²
    dx += 1  # 1 + 3 CUBIC · x²
    dx *= SCALE  # du/dx
    dx *= x  # x · du/dx
    dx *= 1 - xp.square(t)  # x (1 − t²) · du/dx
    dx += t  # t + x (1 − t²) · du/dx
    dx += 1  # 1 + t + x (1 − t²) · du/dx
    dx *= 0.5  # (1 + t + x (1 − t²) · du/dx) / 2
    dx *= dy  # dx
    return (dx,)
