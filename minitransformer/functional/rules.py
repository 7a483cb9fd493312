"""The rules common to all pairs of this folder, in two decorators.

A forward takes its differentiable arrays as positional arguments and returns ``y, saved``; its backward
takes ``dy, saved`` and returns one gradient per positional array, in order. The decorators ``forward``
and ``backward`` add to them:

- one floating type per call: float32 with float64 is an error, not a silent conversion;
- half types (float16, bfloat16) are computed in float32, and results returned in the half type;
- ``add_to``: gradients are added to arrays that the caller owns.

A returned gradient may be ``dy`` itself, or one array may be returned twice: never write into it.
"""

import functools
import inspect
from typing import Any, NamedTuple

import numpy as np

from minitransformer.arrays import array_module

COMPUTED_AS_THEY_ARE = ("float32", "float64")
COMPUTED_IN_FLOAT32 = ("float16", "bfloat16")


class HalfSaved(NamedTuple):
    """What a call on a half type saves: the type of its gradients, and what the float32 call saved."""

    dtype: Any
    saved: Any


def forward(function):
    """Check the types of the positional arrays of ``function`` and run half types in float32.

    A total (0-d) stays in float32: a sum over a batch would overflow float16.
    """
    name = function.__name__.lstrip("_")
    argument_names = tuple(inspect.signature(function).parameters)

    @functools.wraps(function)
    def wrapper(*arrays, **settings):
        dtype = find_common_type(name, argument_names, arrays)
        # a NumPy scalar among the settings would decide the type of the result; a Python one does not
        settings = {
            name: float(value) if isinstance(value, np.floating) else value
            for name, value in settings.items()
        }
        if dtype.name in COMPUTED_AS_THEY_ARE:
            return function(*arrays, **settings)
        y, saved = function(*(_cast(array, np.float32) for array in arrays), **settings)
        return (y if y.ndim == 0 else _cast(y, dtype)), HalfSaved(dtype, saved)

    return wrapper


def backward(function):
    """Run half types in float32 and give ``function`` the argument ``add_to``.

    ``add_to`` holds one array or None per gradient: the gradient is added to the array, which is returned.
    A function that has a parameter ``add_to`` itself may add, and then returns that array.
    """
    adds_itself = "add_to" in inspect.signature(function).parameters

    @functools.wraps(function)
    def wrapper(dy, saved, *, add_to=None):
        dtype = None
        if isinstance(saved, HalfSaved):
            dtype, saved = saved
            dy = _cast(dy, np.float32)
        _check_type_of_gradient(function, dy, saved)
        gradients = function(dy, saved, add_to=add_to) if adds_itself else function(dy, saved)
        owners = add_to or (None,) * len(gradients)
        return tuple(
            _deliver(gradient, owner, dtype) for gradient, owner in zip(gradients, owners, strict=True)
        )

    return wrapper


def find_common_type(function_name, argument_names, arrays):
    """Return the one floating type of ``arrays``; raise TypeError, naming the argument, if there is none."""
    known = COMPUTED_AS_THEY_ARE + COMPUTED_IN_FLOAT32
    first_name, first_type = None, None
    for name, array in zip(argument_names, arrays, strict=False):
        if array is None:
            continue
        dtype = getattr(array, "dtype", None)
        if dtype is None or dtype.name not in known:
            kind = type(array).__name__ if dtype is None else f"{dtype.name} array"
            raise TypeError(f"{function_name}: {name} is a {kind}; expected an array of {', '.join(known)}")
        if first_type is not None and dtype != first_type:
            raise TypeError(
                f"{function_name}: {first_name} is {first_type.name} but {name} is {dtype.name}; "
                "cast them to one type first"
            )
        first_name, first_type = first_name or name, dtype
    return first_type


def check_ids(function_name, ids, limit, noun="id"):
    """Raise ValueError naming the first of ``ids`` that is not in [0, ``limit``).

    Only on the CPU: on a GPU this would synchronise in every step.
    """
    if array_module(ids) is not np or ids.size == 0:
        return
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{function_name}: {noun}s have type {ids.dtype.name}; expected integers")
    if ids.min() < 0 or ids.max() >= limit:
        place = np.argwhere((ids < 0) | (ids >= limit))[0]
        raise ValueError(
            f"{function_name}: {noun} {ids[tuple(place)]} at index {tuple(place.tolist())} is out of range; "
            f"expected 0 to {limit - 1}"
        )


def _check_type_of_gradient(function, dy, saved):
    """Raise TypeError if ``dy`` is an array of another type than the float arrays in ``saved``."""
    if not getattr(dy, "ndim", 0) or not hasattr(saved, "_fields"):
        return
    for name, array in zip(saved._fields, saved, strict=True):
        dtype = getattr(array, "dtype", None)
        if dtype is not None and dtype.kind == "f" and dtype != dy.dtype:
            raise TypeError(
                f"{function.__name__}: the gradient is {dy.dtype.name} but {name} was {dtype.name}; "
                "cast it to the type of the forward's result"
            )


def _cast(array, dtype):
    return array.astype(dtype) if hasattr(array, "astype") else array


def _deliver(gradient, owner, dtype):
    if gradient is None or gradient is owner:
        return gradient
    if owner is not None:
        owner += gradient
        return owner
    return gradient if dtype is None else _cast(gradient, dtype)
