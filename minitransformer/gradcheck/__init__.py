"""Gradient verification: is a backward written by hand the derivative of its forward?

    check_operation(layer_norm, layer_norm_backward, x, gain, bias)
    check_layer(block, x, mask=causal_mask(5))
    check_model(gpt, batch)

Each draws a random upstream gradient (never ones: softmax and a unit-gain layer norm have a zero gradient
there), gives parameters random values (never their initial ones: a wrong use of a gain that is 1 shows
nothing), and compares with differences of the forward, all in float64. On success the errors are returned
by argument; otherwise ``GradientError`` says which function, argument and index, with both values.

What would bend the measurement is refused by name: arguments that are no finite float64 arrays (TypeError,
InputError); a gradient of another type or shape than its argument; a forward or a backward that writes into
arguments, settings, parameters or the upstream gradient; a pullback that does not add to parameters'
gradients.

Kinks, as of ReLU, are found in the forward itself: a slope is measured at six points, and believed only if
the left and the right slope are the same and two estimates of it agree; near a kink the step becomes
shorter, or another direction is drawn. An entry that lies on a kink (or nearer to it than 1e-8 of itself)
may have any gradient between the slopes on both sides. Where every direction starts on kinks, entries are
sampled, and directions are measured at a point moved a little. What can't be measured is neither right nor
wrong: ``UndecidedError``.
"""

import contextlib
import math

import numpy as np

from minitransformer.arrays import array_module, to_numpy
from minitransformer.gradcheck.arguments import check_arrays, check_inputs, is_float64, kind, positional_names
from minitransformer.gradcheck.comparison import ELEMENTS_UP_TO, check
from minitransformer.gradcheck.errors import GradientError, UndecidedError
from minitransformer.gradcheck.subject import Subject
from minitransformer.gradcheck.unchanged import copied

__all__ = [
    "ELEMENTS_UP_TO",
    "GradientError",
    "UndecidedError",
    "check_layer",
    "check_model",
    "check_operation",
]


def check_operation(forward, backward, *arrays, seed=0, **settings):
    """Check a forward/backward pair at ``arrays`` (float64, or None for one left out).

    ``settings`` go to ``forward`` as they are. Returns ``{argument: error}``, or raises ``GradientError``.
    """
    name = _name(forward)
    names = positional_names(forward, len(arrays))
    check_arrays(name, dict(zip(names, arrays, strict=True)))
    arrays = [None if array is None else copied(array) for array in arrays]
    arguments = {key: array for key, array in zip(names, arrays, strict=True) if array is not None}

    def run():
        result = forward(*arrays, **settings)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"{name} returned a {type(result).__name__}; expected the pair y, saved")
        y, saved = result

        def pullback(upstream):
            gradients = _one_for_each(name, backward(upstream["y"], saved), names)
            return {key: g for key, g in zip(names, gradients, strict=True) if key in arguments}

        return {"y": y}, pullback

    subject = Subject(name, arguments, run, watched={**settings, **arguments})
    random = _random(seed)
    return check(subject, lambda y: _draw(random, y), _random(seed, "directions"))


def check_layer(layer, *inputs, seed=0, **settings):
    """Check a layer, built in float64, in its inputs and in all its parameters.

    ``inputs`` and ``settings`` go to the layer as they are; those of ``inputs`` that are float64 arrays are
    differentiated. A layer may return a tuple of arrays; its pullback then takes as many gradients. The
    layer's parameters get random values for the check, and their own (and their gradients) back after it.
    """
    _check_built(layer)
    name, random = type(layer).__name__, _random(seed)
    names = positional_names(layer, len(inputs))
    check_inputs(name, dict(zip(names, inputs, strict=True)))
    inputs = [copied(value) if is_float64(value) else value for value in inputs]
    given = dict(zip(names, inputs, strict=True))
    differentiable = {key: value for key, value in given.items() if is_float64(value)}

    def run():
        outputs, pullback = layer(*inputs, **settings)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        labels = ["y"] if len(outputs) == 1 else [f"y[{index}]" for index in range(len(outputs))]

        def pull(upstream):
            gradients = pullback(*upstream.values())
            if differentiable:
                gradients = gradients if isinstance(gradients, tuple) else (gradients,)
                gradients = _one_for_each(name, gradients, list(differentiable))
            else:
                _check_none(name, gradients, given)
                gradients = ()
            return dict(zip(differentiable, gradients, strict=True)) | _gradients(layer)

        return dict(zip(labels, outputs, strict=True)), pull

    with _random_parameters(layer, random):
        parameters = layer.parameters()
        values = {path: parameter.value for path, parameter in parameters.items()}
        subject = Subject(
            name, differentiable | values, run, {**settings, **given, **values}, parameters=parameters
        )
        return check(subject, lambda y: _draw(random, y), _random(seed, "directions"))


def check_model(model, batch, seed=0, **settings):
    """Check the gradient of a model's loss, built in float64, in all its parameters.

    ``batch`` and ``settings`` go to ``model.loss``; its totals are weighted at random.
    """
    _check_built(model)
    name, random = type(model).__name__, _random(seed)

    def run():
        totals, backward = model.loss(batch, **settings)

        def pull(weights):
            backward(weights)
            return _gradients(model)

        return {key: np.asarray(to_numpy(total)) for key, total in totals.items()}, pull

    with _random_parameters(model, random):
        parameters = model.parameters()
        values = {path: parameter.value for path, parameter in parameters.items()}
        subject = Subject(
            name,
            values,
            run,
            {**settings, "batch": batch, **values},
            "the weights it was given, those of {label}",
            parameters,
        )
        return check(subject, lambda _: random.uniform(0.5, 1.5), _random(seed, "directions"))


def _one_for_each(name, gradients, names):
    """Return ``gradients``; raise GradientError unless it is a tuple with one entry for each of ``names``."""
    if not isinstance(gradients, tuple) or len(gradients) != len(names):
        what = f"{len(gradients)} gradients" if isinstance(gradients, tuple) else type(gradients).__name__
        raise GradientError(
            f"{name}: backward returned {what}; expected a tuple, a gradient for each of {', '.join(names)}"
        )
    return gradients


def _check_built(layer):
    if layer.flat.values.dtype != np.float64:
        raise TypeError(f"gradcheck needs float64: call build(dtype='float64') on the {type(layer).__name__}")


def _check_none(name, gradients, inputs):
    """Raise TypeError for gradients of inputs none of which can be differentiated."""
    if any(hasattr(g, "dtype") for g in (gradients if isinstance(gradients, tuple) else (gradients,))):
        types = ", ".join(f"{key} is {kind(value)}" for key, value in inputs.items())
        raise TypeError(
            f"{name}: {types}, and backward returns a gradient; what is to be differentiated is passed as "
            "float64: np.asarray(x, np.float64)"
        )


@contextlib.contextmanager
def _random_parameters(layer, random):
    """Give a built layer random parameters within a ``with`` block, and its own back after it."""
    flat = layer.flat
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


def _gradients(layer):
    return {path: parameter.gradient for path, parameter in layer.parameters().items()}


def _random(seed, purpose="values"):
    """Return a generator that repeats nothing that a caller drew from ``default_rng(seed)``."""
    return np.random.default_rng([seed, *purpose.encode()])


def _name(function):
    return getattr(function, "__name__", type(function).__name__)


def _draw(random, y):
    return array_module(y).asarray(random.normal(size=y.shape))
