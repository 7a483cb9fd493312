"""What a check accepts: float64 arrays of finite numbers. Tested before anything is computed."""

import inspect

import numpy as np

from minitransformer.arrays import to_numpy
from minitransformer.errors import InputError


def check_arrays(function_name, named):
    """Raise TypeError unless all of ``named`` that are not None are float64 arrays, InputError unless they
    are finite.
    """
    given = {name: value for name, value in named.items() if value is not None}
    wrong = [name for name, value in given.items() if not is_float64(value)]
    if wrong:
        types = ", ".join(f"{name} is {describe_type(value)}" for name, value in given.items())
        mended = ", ".join(f"np.asarray({name}, np.float64)" for name in wrong)
        raise TypeError(
            f"{function_name}: {types}; a gradient is checked in float64 arrays only: pass {mended}"
        )
    for name, array in given.items():
        place = find_not_finite(array)
        if place is not None:
            raise InputError(
                f"{function_name}: {name} is {to_numpy(array)[place]} at index {place}; a gradient is "
                "checked where all arguments are finite: pass other values"
            )


def check_inputs(layer_name, named):
    """Raise TypeError or InputError for an input of a layer that cannot be differentiated, but no integer."""
    for name, value in named.items():
        if is_inexact(value) and not is_float64(value):
            check_arrays(layer_name, {name: value})
    check_arrays(layer_name, {name: value for name, value in named.items() if is_float64(value)})


def check_outputs(function_name, outputs):
    """Raise TypeError unless all of the dictionary ``outputs`` are float64 arrays, InputError for a NaN."""
    for label, y in outputs.items():
        if getattr(y, "dtype", None) != np.float64:
            raise TypeError(
                f"gradcheck needs float64; {function_name} returned {label} as {describe_type(y)}: "
                "let it compute in the type of its arguments"
            )
        values = to_numpy(y)
        if np.isnan(values).any():
            place = tuple(map(int, np.argwhere(np.isnan(values))[0]))
            raise InputError(
                f"{function_name}: {label} is nan at index {place}; expected a number: pass other arguments"
            )


def is_float64(value):
    """Return True for a float64 array that can be written to, so not for a NumPy scalar."""
    return getattr(value, "dtype", None) == np.float64 and not isinstance(value, np.generic)


def is_inexact(value):
    """Return True for floating and complex numbers, and for arrays and lists of them."""
    if hasattr(value, "dtype"):
        return value.dtype.kind in "fcO" or value.dtype.name == "bfloat16"
    if isinstance(value, list):
        return any(is_inexact(part) and not hasattr(part, "dtype") for part in value)
    return isinstance(value, float | complex)


def find_not_finite(array):
    """Return the index of the first entry that is not finite, or None."""
    finite = np.isfinite(to_numpy(array))
    return None if finite.all() else tuple(map(int, np.argwhere(~finite)[0]))


def describe_type(value):
    """Return the type of ``value`` in words: "an int64 array", "a list"."""
    dtype = getattr(value, "dtype", None)
    name = type(value).__name__ if dtype is None or isinstance(value, np.generic) else f"{dtype.name} array"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def list_argument_names(function, count):
    """Return the names of the first ``count`` positional parameters; numbers for ``*arrays``."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    return names if len(names) == count else [f"argument {index}" for index in range(count)]
