"""Gradient verification: is a backward written by hand the derivative of its forward?

    check_operation(layer_norm, layer_norm_backward, x, gain, bias)
    check_layer(block, x, mask=causal_mask(5))
    check_model(gpt, batch)

Each draws a random upstream gradient (not ones, for which the gradients of softmax and of a layer norm of
gain 1 are zero), gives parameters random values (not their initial ones: with a gain of 1, its wrong use
would not be noticed), and compares gradients with finite differences of the forward, all in float64. It
returns the largest error of each argument, or raises ``GradientError``, which names the function, the
argument and the index and gives both values.

What would invalidate the comparison is refused: arguments that are not finite float64 arrays (TypeError,
InputError); a gradient of another type or shape than its argument; a forward or a backward that writes into
arguments, settings, parameters or the upstream gradient; a pullback that does not add to parameters'
gradients.

Kinks, such as ReLU's, are detected in the forward: a slope is measured at six points, and accepted only if
the left and the right slope are equal and two estimates of it agree; near a kink a shorter step is taken, or
another direction. At an entry that lies on a kink (or within 1e-8 of it, relatively), any gradient between
the slopes on both sides is accepted. Where every direction starts on kinks, some entries are checked, and
directions are checked at a nearby point. ``UndecidedError`` is raised for what cannot be measured.
"""

import contextlib
import math

import numpy as np

from minitransformer.arrays import array_module, to_numpy
from minitransformer.gradcheck.arguments import (
    check_arrays,
    check_inputs,
    describe_type,
    is_float64,
    list_argument_names,
)
from minitransformer.gradcheck.comparison import ELEMENTS_UP_TO, check
from minitransformer.gradcheck.errors import GradientError, UndecidedError
from minitransformer.gradcheck.subject import Subject
from minitransformer.gradcheck.unchanged import copy_array

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
    name = _get_name(forward)
    names = list_argument_names(forward, len(arrays))
    check_arrays(name, dict(zip(names, arrays, strict=True)))
    arrays = [None if array is None else copy_array(array) for array in arrays]
    arguments = {key: array for key, array in zip(names, arrays, strict=True) if array is not None}

    def run():
        result = forward(*arrays, **settings)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"{name} returned a {type(result).__name__}; expected the pair y, saved")
        y, saved = result

        def pullback(upstream):
            gradients = _check_count(name, backward(upstream["y"], saved), names)
            return {key: g for key, g in zip(names, gradients, strict=True) if key in arguments}

        return {"y": y}, pullback

    subject = Subject(name, arguments, run, watched={**settings, **arguments})
    random = _make_generator(seed)
    return check(subject, lambda y: _draw_like(random, y), _make_generator(seed, "directions"))


def check_layer(layer, *inputs, seed=0, **settings):
    """Check a layer, built in float64, in its inputs and in all its parameters.

    ``inputs`` and ``settings`` go to the layer as they are; those of ``inputs`` that are float64 arrays are
    differentiated. A layer may return a tuple of arrays; its pullback then takes as many gradients. The
    layer's parameters have random values during the check; then values and gradients are restored.
    """
    _check_built(layer)
    name, random = type(layer).__name__, _make_generator(seed)
    names = list_argument_names(layer, len(inputs))
    check_inputs(name, dict(zip(names, inputs, strict=True)))
    inputs = [copy_array(value) if is_float64(value) else value for value in inputs]
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
                gradients = _check_count(name, gradients, list(differentiable))
            else:
                _check_none(name, gradients, given)
                gradients = ()
            return dict(zip(differentiable, gradients, strict=True)) | _collect_gradients(layer)

        return dict(zip(labels, outputs, strict=True)), pull

    with _randomise_parameters(layer, random):
        parameters = layer.parameters()
        values = {path: parameter.value for path, parameter in parameters.items()}
        subject = Subject(
            name, differentiable | values, run, {**settings, **given, **values}, parameters=parameters
        )
        return check(subject, lambda y: _draw_like(random, y), _make_generator(seed, "directions"))


def check_model(model, batch, seed=0, **settings):
    """Check the gradient of a model's loss, built in float64, in all its parameters.

    ``batch`` and ``settings`` go to ``model.loss``; its totals are weighted at random.
    """
    _check_built(model)
    name, random = type(model).__name__, _make_generator(seed)

    def run():
        totals, backward = model.loss(batch, **settings)

        def pull(weights):
            backward(weights)
            return _collect_gradients(model)

        return {key: np.asarray(to_numpy(total)) for key, total in totals.items()}, pull

    with _randomise_parameters(model, random):
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
        return check(subject, lambda _: random.uniform(0.5, 1.5), _make_generator(seed, "directions"))


def _check_count(name, gradients, names):
    """Return ``gradients``; raise GradientError unless it is a tuple with one entry per name."""
    if not isinstance(gradients, tuple) or len(gradients) != len(names):
        what = f"{len(gradients)} gradients" if isinstance(gradients, tuple) else type(gradients).__name__
        raise GradientError(
            f"{name}: backward returned {what}; expected a tuple of one gradient each for {', '.join(names)}"
        )
    return gradients


def _check_built(layer):
    if layer.flat.values.dtype != np.float64:
        raise TypeError(f"gradcheck needs float64: call build(dtype='float64') on the {type(layer).__name__}")


def _check_none(name, gradients, inputs):
    """Raise TypeError for gradients of inputs none of which can be differentiated."""
    if any(hasattr(g, "dtype") for g in (gradients if isinstance(gradients, tuple) else (gradients,))):
        types = ", ".join(f"{key} is {describe_type(value)}" for key, value in inputs.items())
        raise TypeError(
            f"{name}: {types}, and backward returns a gradient; what is to be differentiated is passed as "
            "float64: np.asarray(x, np.float64)"
        )


@contextlib.contextmanager
def _randomise_parameters(layer, random):
    """Give a built layer random parameters within a ``with`` block; then restore values and gradients."""
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


def _collect_gradients(layer):
    return {path: parameter.gradient for path, parameter in layer.parameters().items()}


def _make_generator(seed, purpose="values"):
    """Return a generator independent of ``default_rng(seed)``, which the caller may have used."""
    return np.random.default_rng([seed, *purpose.encode()])


def _get_name(function):
    return getattr(function, "__name__", type(function).__name__)


def _draw_like(random, y):
    return array_module(y).asarray(random.normal(size=y.shape))
