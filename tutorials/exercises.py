"""Checks for the exercises of the tutorials: each says "passed", or "not yet" and why.

    exercises.check("1.1", lambda: exercises.same(my_softmax(scores), expected, "the weights"))

A check never raises, so that a notebook runs from start to end before its exercises are solved.
"""

import numpy as np


def check(name, attempt):
    """Run ``attempt`` (no arguments) and print whether exercise ``name`` is solved.

    It is, unless ``attempt`` raises or returns False. The message of what it raises is the reason shown.
    """
    try:
        solved = attempt()
    except AssertionError as error:
        reason = str(error) or "the result is not right"
    except Exception as error:
        reason = f"your code raised {type(error).__name__}: {error}"
    else:
        reason = "the result is not right" if isinstance(solved, bool | np.bool_) and not solved else None
    if reason is None:
        print(f"exercise {name}: passed")
    else:
        print(f"exercise {name}: not yet: {' '.join(reason.split())}")


def same(actual, expected, what="the result", tolerance=1e-9):
    """Raise AssertionError, saying how they differ, unless ``actual`` is the array or number ``expected``."""
    if actual is None or actual is Ellipsis:
        raise AssertionError(f"{what} is {actual}; write your code in place of the dots and return it")
    try:
        actual, expected = np.asarray(actual, dtype=float), np.asarray(expected, dtype=float)
    except (TypeError, ValueError):
        raise AssertionError(f"{what} is a {type(actual).__name__}; expected an array of numbers") from None
    if actual.shape != expected.shape:
        raise AssertionError(f"{what} has shape {actual.shape}; expected {expected.shape}")
    wrong = ~np.isclose(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    if wrong.any():
        place = tuple(map(int, np.argwhere(wrong)[0]))
        at = f" at index {place}" if place else ""
        raise AssertionError(
            f"{what} is {actual[place]:.6g}{at}; expected {expected[place]:.6g} "
            f"({wrong.sum()} of {wrong.size} entries differ)"
        )


def true(condition, reason):
    """Raise AssertionError with ``reason`` unless ``condition`` holds."""
    if not condition:
        raise AssertionError(reason)
