"""What is checked: one run of it, forward and backward, with all that its contract demands tested."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minitransformer.arrays import to_numpy
from minitransformer.gradcheck.arguments import check_outputs, describe_type, find_not_finite
from minitransformer.gradcheck.errors import GradientError, UndecidedError
from minitransformer.gradcheck.unchanged import Contents, copy_array

SAME = 1e-9  # the relative difference of two calls that sums in another order explain


@dataclass
class Subject:
    """An operation, a layer or a model at a point.

    ``arguments`` are the arrays that are differentiated, which the check changes in place. ``run()`` returns
    the outputs by label and a pullback, from upstream gradients by label to gradients by argument.
    ``watched`` are the values, by name, that neither may modify; pullbacks add to ``parameters``' gradients.
    """

    name: str
    arguments: dict[str, Any]
    run: Callable
    watched: dict[str, Any]
    upstream_name: str = "the upstream gradient of {label}"
    parameters: dict[str, Any] = field(default_factory=dict)
    upstream: dict[str, Any] | None = None

    def evaluate(self):
        """Return the outputs at the current arguments."""
        return self.run()[0]

    def differentiate(self, draw):
        """Run forward and backward once; return copies of the outputs and of the gradients.

        ``draw(y)`` returns an upstream gradient, drawn in the first call only. Raises GradientError if one of
        them modified its arguments, or if a gradient differs from its argument in type or shape.
        """
        outputs, pullback = self._forward()
        if self.upstream is None:
            self.upstream = {label: draw(y) for label, y in outputs.items()}
        for parameter in self.parameters.values():
            parameter.gradient[...] = 0
        gradients = self._backward(pullback)
        for argument, gradient in gradients.items():
            _check_form(self.name, argument, self.arguments[argument], gradient)
        return outputs, {argument: to_numpy(gradient) for argument, gradient in gradients.items()}

    def check_again(self, outputs, gradients):
        """Run both again: values must be equal, and parameters' gradients must have been added to."""
        again, pullback = self._forward()
        for label, y in outputs.items():
            if again[label].shape != y.shape or not _are_close(again[label], y, SAME * _find_largest(y)):
                raise UndecidedError(
                    f"{self.name} gave two different values of {label} at the same arguments; a gradient can "
                    "only be checked if the forward is a function of its arguments: fix its random numbers"
                )
        if self.parameters:
            self._backward(pullback)
            allowed = SAME * max(map(_find_largest, gradients.values()))
            for path, parameter in self.parameters.items():
                if not _are_close(parameter.gradient, 2 * gradients[path], allowed):
                    raise GradientError(
                        f"{self.name}: a second backward did not add as much to the gradient of {path} as "
                        "the first; a pullback adds, += and not =, to what is there, the same in each call"
                    )

    def _forward(self):
        before = Contents(self.watched)
        outputs, pullback = self.run()
        self._check_unchanged(before, "forward")
        check_outputs(self.name, outputs)
        return {label: copy_array(y) for label, y in outputs.items()}, pullback

    def _backward(self, pullback):
        handed = {label: copy_array(u) if hasattr(u, "dtype") else u for label, u in self.upstream.items()}
        before, before_upstream = Contents(self.watched), Contents(handed)
        gradients = pullback(handed)
        gradients = {name: copy_array(g) if hasattr(g, "dtype") else g for name, g in gradients.items()}
        label = before_upstream.find_change()
        if label is not None:
            raise GradientError(
                f"{self.name}: backward wrote into {self.upstream_name.format(label=label)}; it may be used "
                "elsewhere: leave it as it is and compute anew, as in dx = 3 * dy"
            )
        self._check_unchanged(before, "backward")
        return gradients

    def _check_unchanged(self, before, direction):
        path = before.find_change()
        if path is not None:
            raise GradientError(
                f"{self.name}: {direction} changed {path}; it may be used elsewhere: leave it as it is and "
                "compute anew"
            )


def _check_form(name, argument, array, gradient):
    """Raise GradientError unless ``gradient`` has the shape and type of ``array`` and is finite."""
    shape = getattr(gradient, "shape", None)
    if shape != array.shape:
        what = f"of shape {shape}" if shape is not None else describe_type(gradient)
        raise GradientError(f"{name}: the gradient of {argument} is {what}; expected shape {array.shape}")
    if gradient.dtype != array.dtype:
        raise GradientError(
            f"{name}: the gradient of {argument} is {gradient.dtype.name}; expected {array.dtype.name}, the "
            f"type of {argument}: let backward compute in the type of what it is given"
        )
    index = find_not_finite(gradient)
    if index is not None:
        raise GradientError(
            f"{name}: the gradient of {argument} is wrong; at index {index} backward gives "
            f"{to_numpy(gradient)[index]}"
        )


def _are_close(array, other, allowed):
    return np.allclose(to_numpy(array), to_numpy(other), rtol=0.0, atol=allowed)


def _find_largest(array):
    array = to_numpy(array)
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
