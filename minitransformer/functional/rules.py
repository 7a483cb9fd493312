"""The rules common to all pairs of this folder and of ``kernels``, in two decorators for each.

A forward takes its differentiable arrays as positional arguments and returns ``y, saved``; its backward
takes ``dy, saved`` and returns one gradient per positional array, in order. The decorators
``forward_uncast`` and ``backward_uncast``, which kernels use, add to them:

- one floating type per call: float32 with float64 is an error, not a silent conversion;
- ``add_to``: gradients are added to arrays that the caller owns.

The decorators of definitions, ``forward`` and ``backward``, do the same, and compute half types (float16,
bfloat16) in float32; results are returned in the half type.

A returned gradient may be ``dy`` itself, or one array may be returned twice: never write into it.
"""

import functools
import inspect
from typing import Any, NamedTuple

import numpy as np

from minitransformer.arrays import array_module, name_of_type

COMPUTED_AS_THEY_ARE = ("float32", "float64")
COMPUTED_IN_FLOAT32 = ("float16", "bfloat16")
FLOATING = COMPUTED_AS_THEY_ARE + COMPUTED_IN_FLOAT32


class HalfSaved(NamedTuple):
    """What a definition saves for a half type: the type of the call, and what the float32 call saved."""

    dtype: Any
    saved: Any


def forward_uncast(function):
    """Check the types of the positional arrays of ``function``, which gets them as they are."""
    name = function.__name__.lstrip("_")
    argument_names = tuple(inspect.signature(function).parameters)

    @functools.wraps(function)
    def wrapper(*arrays, **settings):
        find_common_type(name, argument_names, arrays)
        # a NumPy scalar among the settings would decide the type of the result; a Python one does not
        settings = {
            name: float(value) if isinstance(value, np.floating) else value
            for name, value in settings.items()
        }
        return function(*arrays, **settings)

    return wrapper


def backward_uncast(function):
    """Check the type of ``dy`` and give ``function`` the argument ``add_to``.

    ``dy`` must have the type of the call: that of the first floating array in ``saved``, or a type saved by
    itself. ``add_to`` holds one array or None per gradient: the gradient is added to the array, which is
    returned. A function that has a parameter ``add_to`` itself may add, and then returns that array.
    """
    adds_itself = "add_to" in inspect.signature(function).parameters

    @functools.wraps(function)
    def wrapper(dy, saved, *, add_to=None):
        _check_type_of_gradient(function.__name__, dy, _find_type_of_call(saved))
        gradients = function(dy, saved, add_to=add_to) if adds_itself else function(dy, saved)
        owners = add_to or (None,) * len(gradients)
        return tuple(_deliver(gradient, owner) for gradient, owner in zip(gradients, owners, strict=True))

    return wrapper


def forward(function):
    """Check as ``forward_uncast`` does, and run half types in float32.

    A total (0-d) stays in float32: a sum over a batch would overflow float16.
    """

    @functools.wraps(function)
    def wrapper(*arrays, **settings):
        dtype = arrays[0].dtype
        if name_of_type(dtype) in COMPUTED_AS_THEY_ARE:
            return function(*arrays, **settings)
        y, saved = function(*(_cast(array, np.float32) for array in arrays), **settings)
        return (y if y.ndim == 0 else _cast(y, dtype)), HalfSaved(dtype, saved)

    return forward_uncast(wrapper)


def backward(function):
    """Check and add as ``backward_uncast`` does, and run half types in float32.

    Gradients are added to ``add_to`` before they are rounded to the half type.
    """
    checked = backward_uncast(function)

    @functools.wraps(function)
    def wrapper(dy, saved, *, add_to=None):
        if not isinstance(saved, HalfSaved):
            return checked(dy, saved, add_to=add_to)
        _check_type_of_gradient(function.__name__, dy, saved.dtype)
        gradients = checked(_cast(dy, np.float32), saved.saved, add_to=add_to)
        owners = add_to or (None,) * len(gradients)
        return tuple(
            _cast(gradient, saved.dtype) if owner is None else gradient
            for gradient, owner in zip(gradients, owners, strict=True)
        )

    return wrapper


def find_common_type(function_name, argument_names, arrays):
    """Return the one floating type of ``arrays``; raise TypeError, naming the argument, if there is none."""
    first_name, first_type = None, None
    for name, array in zip(argument_names, arrays, strict=False):
        if array is None:
            continue
        dtype = getattr(array, "dtype", None)
        if dtype is None or name_of_type(dtype) not in FLOATING:
            kind = type(array).__name__ if dtype is None else f"{dtype.name} array"
            raise TypeError(
                f"{function_name}: {name} is a {kind}; expected an array of {', '.join(FLOATING)}"
            )
        if first_type is not None and dtype != first_type:
            raise TypeError(
                f"{function_name}: {first_name} is {first_type.name} but {name} is {dtype.name}; "
                "cast them to one type first"
            )
        first_name, first_type = first_name or name, dtype
    return first_type


def check_gradient(function_name, dy, shape):
    """Raise ValueError unless ``dy`` has the ``shape`` of the result."""
    if getattr(dy, "shape", None) != shape:
        raise ValueError(
            f"{function_name}: dy has shape {getattr(dy, 'shape', None)}; expected that of y, {shape}"
        )


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


def _find_type_of_call(saved):
    """Return the first floating type in ``saved``, that of an array or one saved by itself, or None."""
    if isinstance(saved, tuple):
        types = map(_find_type_of_call, saved)
        return next((dtype for dtype in types if dtype is not None), None)
    dtype = getattr(saved, "dtype", saved)
    return dtype if isinstance(dtype, np.dtype) and name_of_type(dtype) in FLOATING else None


def _check_type_of_gradient(function_name, dy, dtype):
    """Raise TypeError if ``dy`` is an array, not a total, of another type than the call, ``dtype``."""
    if getattr(dy, "ndim", 0) and dtype is not None and dy.dtype != dtype:
        raise TypeError(
            f"{function_name}: the gradient is {dy.dtype.name} but the forward's arrays were {dtype.name}; "
            "cast it to the type of the forward's result"
        )


def _cast(array, dtype):
    return array.astype(dtype) if hasattr(array, "astype") else array


def _deliver(gradient, owner):
    if gradient is None or owner is None or gradient is owner:
        return gradient
    owner += gradient
    return owner
