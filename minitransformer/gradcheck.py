"""Gradient verification: is a backward written by hand the derivative of its forward?

    check_operation(layer_norm, layer_norm_backward, x, gain, bias)
    check_layer(block, x, mask=causal_mask(5))
    check_model(gpt, batch)

Each draws a random upstream gradient (never ones: softmax and a unit-gain layer norm have a zero gradient
there), gives parameters random values (never their initial ones: a wrong use of a gain that is 1 shows
nothing), and compares with differences of the forward, all in float64. On success the errors are returned
by argument; otherwise ``GradientError`` says which function, argument and index, with both values.
"""

import contextlib
import inspect
import math
from dataclasses import dataclass

import numpy as np

from minitransformer.arrays import array_module, to_numpy
from minitransformer.dispatch import watching

ELEMENTS_UP_TO = 1500  # entries in all; above, random directions: their cost does not grow with the number
DIRECTIONS = 3
DRAWS = 50
LOCATED_AMONG = 300


class GradientError(AssertionError):
    """A backward pass and differences of its forward pass disagree."""


def check_operation(forward, backward, *arrays, seed=0, **settings):
    """Check a forward/backward pair at ``arrays`` (float64, or None for one left out).

    ``settings`` go to ``forward`` as they are. Returns ``{argument: error}``, or raises ``GradientError``.
    """
    names = _positional_names(forward, len(arrays))
    arrays = [None if array is None else array.copy() for array in arrays]
    result = forward(*arrays, **settings)
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(f"{forward.__name__} returned a {type(result).__name__}; expected the pair y, saved")
    y, saved = result
    upstream = _draw(_random(seed), y)
    gradients = _one_for_each(forward.__name__, backward(upstream, saved), names)
    arguments = {
        name: (array, gradient)
        for name, array, gradient in zip(names, arrays, gradients, strict=True)
        if array is not None
    }
    return _check(
        forward.__name__, arguments, lambda: _inner(upstream, forward(*arrays, **settings)[0]), seed
    )


def check_layer(layer, *inputs, seed=0, **settings):
    """Check a layer, built in float64, in its inputs and in all its parameters.

    ``inputs`` and ``settings`` go to the layer as they are; those of ``inputs`` that are float arrays are
    differentiated. A layer may return a tuple of arrays; its pullback then takes as many gradients. The
    layer's parameters get random values for the check, and their own (and their gradients) back after it.
    """
    random = _random(seed)
    inputs = [value.copy() if _is_float_array(value) else value for value in inputs]
    names = _positional_names(layer, len(inputs))
    differentiable = {
        name: value for name, value in zip(names, inputs, strict=True) if _is_float_array(value)
    }
    with _random_parameters(layer, random):
        outputs, pullback = layer(*inputs, **settings)
        upstream = [_draw(random, y) for y in _as_tuple(outputs)]
        layer.zero_gradients()
        gradients = pullback(*upstream)
        if differentiable:
            gradients = _one_for_each(type(layer).__name__, _as_tuple(gradients), list(differentiable))
        arguments = {name: (array, gradients[i]) for i, (name, array) in enumerate(differentiable.items())}
        arguments |= _parameter_arguments(layer)

        def value():
            outputs, _ = layer(*inputs, **settings)
            return sum(_inner(dy, y) for dy, y in zip(upstream, _as_tuple(outputs), strict=True))

        return _check(type(layer).__name__, arguments, value, seed)


def check_model(model, batch, seed=0, **settings):
    """Check the gradient of a model's loss, built in float64, in all its parameters.

    ``batch`` and ``settings`` go to ``model.loss``; its totals are weighted at random.
    """
    random = _random(seed)
    with _random_parameters(model, random):
        totals, backward = model.loss(batch, **settings)
        weights = {name: random.uniform(0.5, 1.5) for name in totals}
        model.zero_gradients()
        backward(weights)

        def value():
            totals, _ = model.loss(batch, **settings)
            return sum(float(totals[name]) * weight for name, weight in weights.items())

        return _check(type(model).__name__, _parameter_arguments(model), value, seed)


@dataclass(frozen=True)
class _Difference:
    """A finite difference: its step, its order, and the error that it allows."""

    step: float
    order: int
    tolerance: float


# second order at 1e-5 balances truncation and rounding; fourth order along a direction reaches further
ELEMENT = _Difference(1e-5, 2, 1e-6)
DIRECTION = _Difference(1e-3, 4, 1e-8)
# an entry within a step of a kink, such as ReLU's, is right only for a shorter step
SHORT_STEP = 1e-8
# a kink can spoil a direction; a wrong gradient spoils them all
MISSES = 5
# where ReLUs are seen, kinks are everywhere: across a kink no order helps: step less far, and not over it
KINKED_DIRECTION = _Difference(1e-4, 2, 1e-6)


def _check(name, arguments, value, seed):
    for argument, (array, gradient) in arguments.items():
        _check_form(name, argument, array, gradient)
    arguments = {argument: (array, to_numpy(gradient)) for argument, (array, gradient) in arguments.items()}
    with watching(_ReluSigns()) as signs:
        value()
    has_kinks = bool(signs.seen)
    if not has_kinks and sum(array.size for array, _ in arguments.values()) <= ELEMENTS_UP_TO:
        return {argument: _check_elements(name, argument, arguments, value) for argument in arguments}
    difference = KINKED_DIRECTION if has_kinks else DIRECTION
    random = _random(seed, "directions")
    return {
        argument: _check_directions(name, argument, arguments, value, difference, random)
        for argument in arguments
    }


def _one_for_each(name, gradients, names):
    """Return ``gradients``; raise GradientError unless it is a tuple with one entry for each of ``names``."""
    if not isinstance(gradients, tuple) or len(gradients) != len(names):
        what = f"{len(gradients)} gradients" if isinstance(gradients, tuple) else type(gradients).__name__
        raise GradientError(
            f"{name}: backward returned {what}; expected a tuple, a gradient for each of {', '.join(names)}"
        )
    return gradients


def _check_form(name, argument, array, gradient):
    """Raise GradientError unless ``gradient`` is of the shape of ``array`` and all its entries are finite."""
    shape = getattr(gradient, "shape", None)
    if shape != array.shape:
        what = f"of shape {shape}" if shape is not None else f"a {type(gradient).__name__}"
        raise GradientError(f"{name}: the gradient of {argument} is {what}; expected shape {array.shape}")
    gradient = to_numpy(gradient)
    if not np.isfinite(gradient).all():
        index = tuple(map(int, np.argwhere(~np.isfinite(gradient))[0]))
        raise GradientError(
            f"{name}: the gradient of {argument} is wrong; at index {index} backward gives {gradient[index]}"
        )


def _check_elements(name, argument, arguments, value):
    array, gradient = arguments[argument]
    largest = max((_max(g) for _, g in arguments.values()), default=0.0)
    scale = max(_max(gradient), 1e-3 * largest) or 1.0  # where all gradients are zero, compare as it is
    worst_error, worst_index, worst_numeric = 0.0, None, None
    for index in np.ndindex(array.shape):
        numeric = _element_slope(array, index, value, ELEMENT.step)
        error = abs(numeric - gradient[index]) / scale
        if error > ELEMENT.tolerance:
            shorter = _element_slope(array, index, value, SHORT_STEP)
            if abs(shorter - gradient[index]) / scale <= ELEMENT.tolerance:
                numeric, error = shorter, abs(shorter - gradient[index]) / scale
        if not error <= worst_error:
            worst_error, worst_index, worst_numeric = error, index, numeric
    if not worst_error <= ELEMENT.tolerance:
        _fail(name, argument, worst_index, gradient[worst_index], worst_numeric, worst_error)
    return float(worst_error)


def _check_directions(name, argument, arguments, value, difference, random):
    array, gradient = arguments[argument]
    if not array.size:
        return 0.0
    typical = {key: np.linalg.norm(g) / math.sqrt(max(g.size, 1)) for key, (_, g) in arguments.items()}
    floor = 1e-3 * max(typical.values()) or 1.0
    worst_error, done, missed = 0.0, 0, 0
    for _ in range(DRAWS):
        direction = random.normal(size=array.shape)
        direction /= np.linalg.norm(direction)
        slope = float(np.vdot(gradient, direction))
        if abs(slope) < 0.1 * typical[argument]:
            continue
        numeric = _direction_slope(array, direction, value, difference)
        if numeric is None:
            continue
        error = abs(numeric - slope) / max(abs(slope), floor)
        if not error <= difference.tolerance:
            missed += 1
            if missed > MISSES:
                _locate(name, argument, arguments, value, error)
            continue
        worst_error, done = max(worst_error, error), done + 1
        if done == DIRECTIONS:
            return worst_error
    raise GradientError(
        f"{name}: no direction for {argument} avoids a kink of ReLU; use fewer rows or another seed"
    )


def _locate(name, argument, arguments, value, error):
    """A direction failed: find the entry that is most wrong, among those of largest gradient."""
    array, gradient = arguments[argument]
    candidates = np.argsort(-np.abs(gradient), axis=None)
    spread = np.linspace(0, gradient.size - 1, min(gradient.size, LOCATED_AMONG)).astype(int)
    indices = [tuple(map(int, np.unravel_index(flat, gradient.shape))) for flat in candidates[spread]]
    numeric = [_element_slope(array, index, value, ELEMENT.step) for index in indices]
    gaps = [abs(slope - gradient[index]) for slope, index in zip(numeric, indices, strict=True)]
    worst = int(np.nanargmax(np.where(np.isnan(gaps), np.inf, gaps)))
    _fail(name, argument, indices[worst], gradient[indices[worst]], numeric[worst], error)


def _fail(name, argument, index, analytic, numeric, error):
    place = ", ".join(str(int(i)) for i in index)
    raise GradientError(
        f"{name}: the gradient of {argument} is wrong; at index ({place}) backward gives {analytic:.10g} "
        f"and the difference of forwards {numeric:.10g} (relative error {error:.1e})"
    )


def _element_slope(array, index, value, step):
    """Return the central difference of ``value()`` in one entry of ``array``."""
    kept = float(array[index])
    step = step * max(1.0, abs(kept))
    sides = []
    for side in (kept + step, kept - step):
        array[index] = side
        sides.append(value())
    array[index] = kept
    return (sides[0] - sides[1]) / (2 * step)


def _direction_slope(array, direction, value, difference):
    """Return the derivative of ``value()`` along ``direction``, or None if a ReLU changes sign on the way."""
    kept = array.copy()
    direction = array_module(array).asarray(direction)
    values, signs = {}, []
    for multiple in (1, -1, 2, -2)[: difference.order]:
        array[...] = kept + multiple * difference.step * direction
        with watching(_ReluSigns()) as seen:
            values[multiple] = value()
        signs.append(seen.seen)
    array[...] = kept
    if any(sign != signs[0] for sign in signs):
        return None
    slope = (values[1] - values[-1]) / (2 * difference.step)
    if difference.order == 2:
        return slope
    wide_slope = (values[2] - values[-2]) / (4 * difference.step)
    return (4 * slope - wide_slope) / 3


class _ReluSigns:
    """A watcher that remembers on which side of its kink every ReLU was."""

    def __init__(self):
        self.seen = []

    def saw_forward(self, name, arrays, settings, y, saved):
        if name == "relu":
            self.seen.append(to_numpy(arrays[0] > 0).tobytes())

    def saw_backward(self, name, dy, saved, gradients):
        pass


@contextlib.contextmanager
def _random_parameters(layer, random):
    """Give a built layer random parameters within a ``with`` block, and its own back after it."""
    flat = layer.flat
    if flat.values.dtype != np.float64:
        raise TypeError(f"gradcheck needs float64: call build(dtype='float64') on the {type(layer).__name__}")
    kept, kept_gradients = flat.values.copy(), flat.gradients.copy()
    try:
        for parameter in layer.parameters().values():
            vector = len(parameter.shape) == 1
            spread = 0.5 if vector else 1 / math.sqrt(parameter.shape[0])
            drawn = random.normal(0.5 if vector else 0.0, spread, parameter.shape)
            parameter.value[...] = array_module(parameter.value).asarray(drawn)
        yield
    finally:
        flat.values[...] = kept
        flat.gradients[...] = kept_gradients


def _parameter_arguments(layer):
    return {path: (p.value, p.gradient.copy()) for path, p in layer.parameters().items()}


def _random(seed, purpose="values"):
    """Return a generator that repeats nothing that a caller drew from ``default_rng(seed)``."""
    return np.random.default_rng([seed, *purpose.encode()])


def _positional_names(function, count):
    """Return the names of the first ``count`` positional parameters; numbers for ``*arrays``."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][:count]
    return names if len(names) == count else [f"argument {index}" for index in range(count)]


def _draw(random, y):
    if getattr(y, "dtype", None) != np.float64:
        raise TypeError(
            f"gradcheck needs float64; the forward returned {getattr(y, 'dtype', type(y).__name__)}"
        )
    return array_module(y).asarray(random.normal(size=y.shape))


def _as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def _inner(upstream, y):
    return float((upstream * y).sum())


def _max(array):
    return float(np.abs(array).max()) if array.size else 0.0


def _is_float_array(value):
    return getattr(getattr(value, "dtype", None), "kind", "") == "f" and value.ndim > 0
