"""GELU and its derivative in vectors, computed together: both need the same exponential.

With y = x Φ(x) the derivative is Φ(x) + x φ(x) (``functional.gelu``). Φ is not computed from erf, but from
its tail, which keeps its relative precision for negative x: for z = |x| and t = 1/(1 + 0.3 z)

    1 − Φ(z) = exp(−z²/2) · P(t)

where P, of degree 10, is within 4·10⁻⁹ of Mills' ratio / √(2π) (the form of Abramowitz & Stegun 26.2.17,
fitted anew).
"""

from minitransformer.functional.gelu import CUBIC, SCALE
from minitransformer.kernels.cpu.compiling import inline
from minitransformer.kernels.cpu.vectors import exp2, fused, splat, where

LOG2_E = 1.4426950408889634
DENSITY = 0.3989422804014327  # 1/√(2π)
TAIL = (  # the coefficients of t¹⁰ … t¹ of P
    -0.0206046451,
    0.112333486,
    -0.227973597,
    0.191464426,
    -0.0791568811,
    0.09601325,
    0.0784395847,
    0.110224623,
    0.119573132,
    0.119686621,
)


@inline
def gelu_exact(x):
    """Return x Φ(x) and Φ(x) + x φ(x)."""
    zero, one = splat(0.0), splat(1.0)
    z = where(x <= zero, zero - x, x)
    t = one / fused(splat(0.3), z, one)
    tail = splat(TAIL[0])
    for coefficient in TAIL[1:]:
        tail = fused(tail, t, splat(coefficient))
    power = exp2(x * x * splat(-0.5 * LOG2_E))  # exp(−x²/2)
    tail = tail * t * power
    cdf = where(x <= zero, tail, one - tail)
    return x * cdf, fused(x * splat(DENSITY), power, cdf)


@inline
def gelu_tanh(x):
    """Return x (1 + tanh u) / 2 and its derivative, with s = (1 + tanh u) / 2 = 1 / (1 + exp(−2u)).

    By u = SCALE · (x + CUBIC · x³), the derivative is s + 2 x s (1 − s) · du/dx.
    """
    zero, one, limit = splat(0.0), splat(1.0), splat(126.0)
    square = x * x
    u = x * fused(square, splat(CUBIC), one) * splat(SCALE)
    exponent = u * splat(-2.0 * LOG2_E)
    above = limit <= exponent  # 2¹²⁷ is the largest power
    s = where(above, zero, one / (one + exp2(where(above, limit, exponent))))
    slope = fused(square, splat(3.0 * CUBIC), one) * splat(SCALE)  # du/dx
    return x * s, fused(x * s * (one - s) * splat(2.0), slope, s)
