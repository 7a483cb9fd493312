"""The comparison of gradients with differences: of each entry where there are few, else along directions."""

import math

import numpy as np

from minitransformer.arrays import array_module, to_numpy
from minitransformer.gradcheck.arguments import find_not_finite
from minitransformer.gradcheck.errors import GradientError, UndecidedError
from minitransformer.gradcheck.slopes import (
    CAUTION,
    COARSEST,
    FINEST,
    Line,
    Loss,
    Verdict,
    judge,
    judge_quickly,
)
from minitransformer.gradcheck.unchanged import copy_array

ELEMENTS_UP_TO = 1500  # entries in all; above, directions, whose cost does not grow with the number
ELEMENT_STEP = 1e-5  # balances the truncation and the rounding of second-order differences
ELEMENT_TOLERANCE = 1e-6
DIRECTION_TOLERANCE = 1e-8
DIRECTIONS = 3
DRAWS = 50
UNDECIDED_DRAWS = 16
SAMPLED_ON_KINKS = 10  # entries checked of an argument where every direction starts on kinks
MOVES = 2.0**-7, 2.0**-12, 2.0**-20  # a shorter one is tried where the forward is not defined
TINY = 2.0**-34  # a relative change that float64 resolves and float32 does not


def check(subject, draw_upstream, random):
    """Compare the gradients of ``subject``; return the errors by argument, or raise GradientError.

    Arguments that lie on a kink in every direction are compared at a nearby point, where the backward runs
    again. Raises UndecidedError for what cannot be measured there either.
    """
    outputs, gradients = subject.differentiate(draw_upstream)
    subject.check_again(outputs, gradients)
    errors, undecided = _Comparison(subject, outputs, gradients, random).run(subject.arguments)
    if undecided and (moved := _move_off_kinks(subject, draw_upstream, random)):
        found, undecided = _Comparison(subject, *moved, random).run(undecided)
        errors |= found
    for argument, reason in undecided.items():
        raise UndecidedError(
            f"{subject.name}: differences of the forward can't decide whether the gradient of {argument} is "
            f"right: {reason}; compute in float64 throughout, or check at other values or fewer rows"
        )
    return {argument: errors[argument] for argument in subject.arguments}


def _move_off_kinks(subject, draw_upstream, random):
    """Move all arguments away from kinks; return outputs and gradients there, or None if not defined."""
    kept = {name: to_numpy(array).copy() for name, array in subject.arguments.items()}
    for length in MOVES:
        for name, array in subject.arguments.items():
            away = random.choice((-1.0, 1.0), array.shape) * random.uniform(0.5, 1.0, array.shape)
            _assign(array, kept[name] + length * np.maximum(np.abs(kept[name]), _rms(kept[name])) * away)
        with np.errstate(all="ignore"):
            try:
                outputs = subject.evaluate()
            except (ArithmeticError, ValueError):
                continue
        if all(find_not_finite(y) is None for y in outputs.values()):
            return subject.differentiate(draw_upstream)
    return None


class _Comparison:
    """The gradients of a subject, and differences of its forward, at one point."""

    def __init__(self, subject, outputs, gradients, random):
        self.subject, self.gradients, self.random = subject, gradients, random
        self.loss = Loss(subject.evaluate, outputs, subject.upstream)
        self.typical = {
            name: float(np.linalg.norm(g)) / math.sqrt(max(g.size, 1)) for name, g in gradients.items()
        }

    def run(self, arguments):
        """Return the errors of ``arguments``, and the reasons for those that could not be decided."""
        few = sum(array.size for array in self.subject.arguments.values()) <= ELEMENTS_UP_TO
        errors, undecided = {}, {}
        for argument in arguments:
            error, reason = self._check_elements(argument) if few else self._check_directions(argument)
            if reason:
                undecided[argument] = reason
            errors[argument] = error
        return errors, undecided

    def _check_elements(self, argument):
        """Compare every entry; return the largest error, and why one could not be decided, or ""."""
        array, gradient = self.subject.arguments[argument], self.gradients[argument]
        scale = self._compute_scale(argument)
        rounding = CAUTION * np.finfo(np.float64).eps * self.loss.size / ELEMENT_STEP
        is_measurable = rounding <= ELEMENT_TOLERANCE * scale
        errors = np.full(array.shape, np.inf)
        for index in np.ndindex(array.shape) if is_measurable else ():
            errors[index] = abs(self._estimate_element_slope(array, index) - gradient[index]) / scale
        errors[np.isnan(errors)] = np.inf
        doubtful = np.flatnonzero(errors > ELEMENT_TOLERANCE)
        reason = ""
        for flat in doubtful[np.argsort(-errors.reshape(-1)[doubtful], kind="stable")]:
            index = _unravel(flat, array.shape)
            verdict = self._judge_element(argument, index)
            if verdict.word == "wrong":
                self._fail(argument, index, verdict.slope, verdict.error / scale)
            errors[index] = 0.0 if verdict.word == "undecided" else verdict.error / scale
            reason = reason or verdict.reason
        return float(errors.max(initial=0.0)), reason

    def _check_directions(self, argument):
        """Compare random directions; return the largest error, and why none could be decided, or ""."""
        array, gradient = self.subject.arguments[argument], self.gradients[argument]
        least_scale = 1e-3 * max(self.typical.values()) or self._compute_default_scale(argument)
        worst, done, reasons = 0.0, 0, []
        for _ in range(DRAWS if array.size else 0):
            direction = self.random.normal(size=array.shape)
            direction /= np.linalg.norm(direction)
            slope = float(np.vdot(gradient, direction))
            if abs(slope) < 0.1 * self.typical[argument]:
                continue
            scale = max(abs(slope), least_scale)
            with self._make_line(array, direction) as line:
                arguments = line, slope, scale, DIRECTION_TOLERANCE
                verdict = judge_quickly(*arguments) or judge(*arguments)
            verdict = self._check_for_steps(verdict)
            if verdict.word == "wrong":
                self._locate(argument, direction, verdict.step, verdict.slope - slope, verdict.error / scale)
            if verdict.word == "right":
                worst, done = max(worst, verdict.error / scale), done + 1
                if done == DIRECTIONS:
                    break
                continue
            reasons.append(verdict.reason)
            if verdict.word == "kink":
                self._check_sample(argument)
                return worst, "it lies on kinks in every direction"
            if len(reasons) == UNDECIDED_DRAWS:
                break
        return worst, "" if done or not reasons else reasons[-1]

    def _compute_scale(self, argument):
        largest = {name: float(np.abs(g).max(initial=0.0)) for name, g in self.gradients.items()}
        return max(largest[argument], 1e-3 * max(largest.values())) or self._compute_default_scale(argument)

    def _compute_default_scale(self, argument):
        """Return a scale for slopes where all gradients are zero."""
        typical = _rms(to_numpy(self.subject.arguments[argument]))
        return (min(1e-3 * self.loss.size, 1.0) or 1.0) / max(typical, 1.0)

    def _judge_element(self, argument, index):
        array, gradient = self.subject.arguments[argument], self.gradients[argument]
        kept = float(array[index])

        def move(t):
            array[index] = kept + t

        with Line(self.loss, move, _round_up(kept), FINEST * (abs(kept) or 1.0)) as line:
            verdict = judge(line, float(gradient[index]), self._compute_scale(argument), ELEMENT_TOLERANCE)
        if verdict.word == "kink" and verdict.error > 0:
            return verdict._replace(word="wrong")
        return self._check_for_steps(verdict)

    def _estimate_element_slope(self, array, index):
        """Return the central difference in one entry, of unknown accuracy."""
        kept = float(array[index])
        step = ELEMENT_STEP * max(1.0, abs(kept))
        sides = []
        for side in (kept + step, kept - step):
            array[index] = side
            sides.append(self.loss.measure_change())
        array[index] = kept
        return (sides[0] - sides[1]) / (2 * step)

    def _make_line(self, array, direction):
        kept, direction = copy_array(array), array_module(array).asarray(direction)

        def move(t):
            array[...] = kept + t * direction if t else kept

        typical = _rms(to_numpy(kept))
        return Line(self.loss, move, _round_up(typical), FINEST * typical)

    def _check_sample(self, argument):
        """Check the entries of the largest gradients and some random ones, for an argument on kinks."""
        gradient = self.gradients[argument]
        largest = np.argsort(-np.abs(gradient), axis=None)[: SAMPLED_ON_KINKS // 2]
        others = self.random.integers(0, gradient.size, SAMPLED_ON_KINKS // 2)
        for flat in (*largest, *others):
            index = _unravel(flat, gradient.shape)
            verdict = self._judge_element(argument, index)
            if verdict.word == "wrong":
                self._fail(argument, index, verdict.slope, verdict.error / self._compute_scale(argument))

    def _locate(self, argument, direction, step, gap, error):
        """Raise GradientError for the wrong entry, found by halving a direction that is wrong by ``gap``."""
        array, gradient = self.subject.arguments[argument], self.gradients[argument]
        start, stop = 0, gradient.size
        while stop - start > 1:
            middle = (start + stop) // 2
            part = np.zeros(gradient.size)
            part[start:middle] = direction.reshape(-1)[start:middle]
            part = part.reshape(gradient.shape)
            with self._make_line(array, part) as line:
                first = line.measure_slope(step) - float(np.vdot(gradient, part))
            if abs(first) >= abs(gap - first):
                stop, gap = middle, first
            else:
                start, gap = middle, gap - first
        index = _unravel(start, gradient.shape)
        verdict = self._judge_element(argument, index)
        if verdict.word == "wrong":
            self._fail(argument, index, verdict.slope, error)
        raise GradientError(
            f"{self.subject.name}: the gradient of {argument} is wrong along random directions "
            f"(relative error {error:.1e})"
        )

    def _check_for_steps(self, verdict):
        """Return ``verdict``, or an undecided one if the forward is a step function, as in float32.

        Then most outputs that change with a relative step of 2⁻¹⁰ do not change with a tiny one.
        """
        if verdict.word == "right" or not (verdict.is_flat or verdict.word == "undecided"):
            return verdict
        random = np.random.default_rng(0)
        kept = {name: copy_array(array) for name, array in self.subject.arguments.items()}
        away = {name: random.choice((-1.0, 1.0), array.shape) for name, array in kept.items()}
        changed = []
        for length in (COARSEST, TINY):
            for name, array in self.subject.arguments.items():
                values = to_numpy(kept[name])
                _assign(array, values + length * np.maximum(np.abs(values), _rms(values)) * away[name])
            changed.append(self.loss.find_changed())
        for name, array in self.subject.arguments.items():
            array[...] = kept[name]
        if changed[0].mean() > 0.25 and changed[1][changed[0]].mean() < 0.5:
            reason = "it changes in steps, as if computed in float32 or beside a far larger number"
            return Verdict("undecided", reason=reason)
        return verdict

    def _fail(self, argument, index, numeric, error):
        place = ", ".join(map(str, index))
        raise GradientError(
            f"{self.subject.name}: the gradient of {argument} is wrong; at index ({place}) backward gives "
            f"{self.gradients[argument][index]:.10g} and the difference of forwards {numeric:.10g} "
            f"(relative error {error:.1e})"
        )


def _unravel(flat, shape):
    return tuple(map(int, np.unravel_index(flat, shape)))


def _rms(array):
    """Return the root of the mean square, or 1 for zeros."""
    return float(np.linalg.norm(array)) / math.sqrt(max(array.size, 1)) or 1.0


def _round_up(size):
    """Return the least power of two that is at least ``size`` and at least 1."""
    return 2.0 ** math.ceil(math.log2(max(abs(size), 1.0)))


def _assign(array, values):
    array[...] = array_module(array).asarray(values)
