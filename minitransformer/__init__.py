"""A transformer to read, verify and race: every forward and backward pass written by hand.

    functional   the maths, in forward/backward pairs on NumPy or CuPy arrays
    layers       parameters and composition: each call returns its value and its pullback
    models       GPT
    gradcheck    is a backward the derivative of its forward?
    trace        print every operation of a forward and its backward

The command line is ``minitransformer --help``.
"""

from minitransformer.dispatch import inference
from minitransformer.tracing import trace

__all__ = ["inference", "trace"]
__version__ = "0.1.0"
