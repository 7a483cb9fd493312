"""A transformer to read, verify and race: every forward and backward pass written by hand.

    functional   the maths, in forward/backward pairs on NumPy or CuPy arrays
    layers       parameters and composition: each call returns its value and its pullback
    models       GPT
    gradcheck    is a backward the derivative of its forward?
    trace        print every operation of a forward and its backward
    reference    switch the fused kernels off

The command line is ``minitransformer --help``.
"""

import importlib

__all__ = ["inference", "reference", "trace"]
__version__ = "0.1.0"

_WHERE = {
    "inference": "minitransformer.dispatch",
    "reference": "minitransformer.dispatch",
    "trace": "minitransformer.tracing",
}


def __getattr__(name):
    """Import what is asked for: the command line has something to say before NumPy is loaded."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
