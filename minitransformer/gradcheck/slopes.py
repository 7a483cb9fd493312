"""Slopes of a function along a line, each with an estimate of its error.

A function is evaluated at six points around 0: ±h/2, ±h, ±2h. The odd part of a smooth function, divided by
h, is a constant plus terms in h² and h⁴; three steps give two estimates of the constant, and their difference
bounds the remaining error. The even part, divided by h, has terms in h and h³ only; its constant is the right
slope minus the left one, which is zero unless 0 is a kink. A kink or a jump elsewhere between the points
disturbs both. So a slope is accepted only if both are small, and the rounding of the values too: then it is
the slope of a smooth function, or of a smooth piece; otherwise a shorter step is taken.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from minitransformer.arrays import to_numpy

COARSEST = 2.0**-10  # powers of two: most entries plus a step are exact
SHORTER = 2.0**-4
FINEST = 2.0**-26
MOST_STEPS = 14
LONGER = 2.0**-6, 2.0**-3  # for functions that change little relative to their values
CONFIRMING = 0.375, 0.14  # times the step: none of their points was evaluated before
BELIEVED = 1e-6
STEADY = 1e-2
NOISE = 1e-10
CAUTION = 4  # the factor by which an estimated error is increased


class Loss:
    """upstream · (y − y₀), where y is the value of ``evaluate()`` now and y₀ the initial one.

    The difference is taken entry by entry: entries that do not change add no rounding.
    """

    def __init__(self, evaluate, outputs, upstream):
        self.evaluate, self.outputs, self.upstream = evaluate, outputs, upstream
        self.squares = {}
        for label, y in outputs.items():
            square = (upstream[label] * y) ** 2
            self.squares[label] = square if math.isfinite(float(square.sum())) else None
        self.size = math.sqrt(sum(float(s.sum()) for s in self.squares.values() if s is not None))

    def measure_change(self):
        """Return the change of the loss; NaN where the forward is not defined."""
        return sum(float((self.upstream[label] * d).sum()) for label, d in self._differences().items())

    def measure_change_and_rounding(self):
        """Return the change of the loss, and an estimate of the rounding of the entries that changed."""
        differences = self._differences()
        change = sum(float((self.upstream[label] * d).sum()) for label, d in differences.items())
        squares = 0.0
        for label, difference in differences.items():
            if self.squares[label] is not None and self.squares[label].shape == difference.shape:
                squares += float((self.squares[label] * (difference != 0)).sum())
        return change, np.finfo(np.float64).eps * (math.sqrt(squares) or self.size)

    def find_changed(self):
        """Return booleans, one per entry of all outputs: whether it changed."""
        return np.concatenate([to_numpy(d != 0).reshape(-1) for d in self._differences().values()])

    def _differences(self):
        with np.errstate(all="ignore"):
            try:
                outputs = self.evaluate()
            except (ArithmeticError, ValueError):  # outside the domain
                return {label: base * math.nan for label, base in self.outputs.items()}
            differences = {}
            for label, base in self.outputs.items():
                y = outputs[label]
                difference = y - base if y.shape == base.shape else base * math.nan
                if self.squares[label] is None:  # ∞ - ∞
                    difference[y == base] = 0.0
                differences[label] = difference
        return differences


class Line:
    """The change of a loss along a line: ``move(t)`` sets the arguments to the point t on it.

    Steps are multiples of ``unit``; those shorter than ``finest`` are taken only where longer ones leave the
    function's domain. A context manager, which moves back to 0 on exit.
    """

    def __init__(self, loss, move, unit, finest):
        self.loss, self.move, self.unit, self.finest = loss, move, unit, finest
        self.known = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.move(0.0)

    def measure(self, t):
        """Return the change of the loss at ``t``, and its rounding."""
        if t not in self.known:
            self.move(t)
            self.known[t] = self.loss.measure_change_and_rounding()
        return self.known[t]

    def measure_slope(self, step):
        """Return the central difference of second order, of unknown accuracy."""
        return (self.measure(step)[0] - self.measure(-step)[0]) / (2 * step)


class Fit(NamedTuple):
    """The result of six points.

    ``slope`` and the difference of two estimates of it, ``spread``; ``kink``, the right slope minus the left
    one; the slopes on both sides; the rounding of a slope.
    """

    step: float
    slope: float
    spread: float
    kink: float
    left: float
    right: float
    rounding: float

    @property
    def error(self):
        return CAUTION * (self.spread + abs(self.kink) + self.rounding)

    def is_steady(self, size):
        """Return True if the error is small relative to the slope itself, or may be rounding.

        A fast wave sampled by long steps has errors that are small relative only to its true slope.
        """
        return self.spread + abs(self.kink) <= max(STEADY * abs(self.slope), NOISE * size / self.step)


def fit(line, step):
    """Return the ``Fit`` with ``step``, or None where a value is not finite."""
    sides = {}
    for sign in (1, -1):
        for multiple in (0.5, 1, 2):
            value, rounding = line.measure(sign * multiple * step)
            if not math.isfinite(value):
                return None
            sides[sign * multiple] = value
    odd = [(sides[m] - sides[-m]) / (2 * m * step) for m in (0.5, 1, 2)]
    even = [(sides[m] + sides[-m]) / (m * step) for m in (0.5, 1, 2)]
    fine, coarse = (4 * odd[0] - odd[1]) / 3, (4 * odd[1] - odd[2]) / 3
    fine_kink, coarse_kink = 2 * even[0] - even[1], 2 * even[1] - even[2]
    one_sided = {
        sign: sign * (4 * (sides[sign] - sides[sign / 2]) - (sides[2 * sign] - sides[sign])) / step
        for sign in (1, -1)
    }
    return Fit(
        step,
        slope=(16 * fine - coarse) / 15,
        spread=abs(fine - coarse),
        kink=(8 * fine_kink - coarse_kink) / 7,
        left=one_sided[-1],
        right=one_sided[1],
        rounding=rounding / step,
    )


class Verdict(NamedTuple):
    """Whether a slope is that of a line: "right", "wrong", "kink" (the line starts on one) or "undecided".

    ``error`` is its distance from ``slope``, which was measured with ``step``; on a kink, its distance from
    the interval between the slopes on both sides. ``reason`` says why it is undecided; ``is_flat`` is True if
    nothing changes with this step, but did with a longer one.
    """

    word: str
    error: float = math.nan
    slope: float = math.nan
    step: float = math.nan
    reason: str = ""
    is_flat: bool = False


def judge_quickly(line, analytic, scale, tolerance):
    """Return the verdict "right" if the slope from four points agrees to ``tolerance``, else None.

    That a disturbed measurement agrees by chance is as improbable as ``tolerance`` is small.
    """
    step = COARSEST * line.unit
    slope = (4 * line.measure_slope(step) - line.measure_slope(2 * step)) / 3
    error = abs(slope - analytic)
    if (
        error <= tolerance * scale
        and CAUTION * line.measure(step)[1] / step <= max(BELIEVED, tolerance) * scale
    ):
        return Verdict("right", error, slope, step)
    return None


def judge(line, analytic, scale, tolerance):
    """Return the ``Verdict`` on the slope ``analytic`` of ``line``.

    A measured slope is used if its error is below ``BELIEVED``, relative to the larger of ``scale`` and
    itself. Then ``analytic`` may differ from it by the larger of ``tolerance`` and its error. A slope is
    called wrong only if measurements with three steps agree with each other.
    """
    fits = []
    for step in _generate_steps(line, scale):
        found = fit(line, step)
        if found is None:
            continue
        if found.error <= BELIEVED * max(scale, abs(found.slope)):
            error = abs(found.slope - analytic)
            if error <= max(tolerance * scale, found.error):
                return Verdict("right", error, found.slope, step)
            if _is_confirmed(line, found, analytic, scale, tolerance):
                return Verdict("wrong", error, found.slope, step, is_flat=bool(fits) and _is_flat(line, step))
        fits.append(found)
    return _judge_at_kink(fits, analytic, scale) or Verdict("undecided", reason=_explain(line, fits, scale))


def _generate_steps(line, scale):
    """Yield shorter and shorter steps until rounding dominates; longer ones if it did with the first."""
    is_rounding = False
    for power in range(MOST_STEPS):
        step = COARSEST * SHORTER**power * line.unit
        yield step
        value, rounding = line.measure(step)
        is_rounding = math.isfinite(value) and CAUTION * rounding > BELIEVED * max(scale * step, abs(value))
        if is_rounding or (math.isfinite(value) and step * SHORTER < line.finest):
            break
    if is_rounding and power == 0:
        yield from (step * line.unit for step in LONGER)


def _is_confirmed(line, found, analytic, scale, tolerance):
    """Return True if shorter steps find the same slope, well enough to exclude ``analytic``."""
    allowed, believed = tolerance * scale, BELIEVED * max(scale, abs(found.slope))
    if not found.is_steady(line.loss.size):
        return False
    for part in CONFIRMING:
        again = fit(line, part * found.step)
        if (
            again is None
            or not again.is_steady(line.loss.size)
            or again.error > CAUTION**2 * believed
            or abs(again.slope - found.slope) > max(allowed, found.error + again.error)
            or abs(again.slope - analytic) <= max(allowed, again.error)
        ):
            return False
    return True


def _is_flat(line, step):
    return all(line.measure(sign * multiple * step)[0] == 0.0 for sign in (1, -1) for multiple in (0.5, 1, 2))


def _judge_at_kink(fits, analytic, scale):
    """Return the verdict if the line starts on a kink, where each side's slope is the same at two steps."""
    for wide, narrow in reversed(list(itertools.pairwise(fits))):
        low, high = sorted((narrow.left, narrow.right))
        steeper = max(abs(low), abs(high))
        believed = BELIEVED * max(scale, steeper)
        allowed = max(believed, CAUTION**2 * narrow.rounding)
        moved = max(abs(wide.left - narrow.left), abs(wide.right - narrow.right))
        if moved <= min(allowed, STEADY * steeper) and allowed <= CAUTION * believed and high - low > allowed:
            nearest = min(max(analytic, low), high)
            beyond = abs(analytic - nearest)
            return Verdict("kink", beyond if beyond > allowed else 0.0, nearest, narrow.step)
    return None


def _explain(line, fits, scale):
    if not fits:
        return "it is not finite at nearby points"
    if CAUTION * fits[0].rounding > BELIEVED * scale:
        return f"its changes are smaller than the rounding of values of size {line.loss.size:.0e}"
    return "kinks, jumps or rounding errors are too close"
