"""The gradient check on functions with kinks, the user's own: no right one is refused, no wrong one passes.

The suite takes some seeds of the smaller sizes. As many as you like, of all sizes (100 take about two hours):

    MINITRANSFORMER_SEEDS=100 pytest tests/gradcheck/test_gradcheck_kinks.py
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from minitransformer.gradcheck import GradientError, check_operation

SEEDS = {(3,): 100, (10,): 50, (300, 300): 3}
LARGEST = 1500, 1000
if "MINITRANSFORMER_SEEDS" in os.environ:
    SEEDS = dict.fromkeys([*SEEDS, LARGEST], int(os.environ["MINITRANSFORMER_SEEDS"]))


class Kinked(NamedTuple):
    """A pair that is right, and pairs' backwards that are not; ``arrays`` is how many it takes."""

    forward: Callable
    backward: Callable
    wrong: dict[str, Callable]
    arrays: int = 1


def rectify(x):
    return np.where(x > 0, x, 0.0), x


def leak(x):
    return np.where(x > 0, x, 0.1 * x), x


def magnitude(x):
    return np.abs(x), x


def clip(x):
    return np.clip(x, -0.5, 0.5), x


def larger(a, b):
    return np.maximum(a, b), a >= b


def pool(x):
    """Take the largest of every two neighbours, and of three at the end if their number is odd."""
    flat = x.reshape(-1)
    starts = np.arange(0, flat.size - flat.size % 2, 2)
    y = np.maximum.reduceat(flat, starts)
    widths = np.diff(starts, append=flat.size)
    taken = flat == np.repeat(y, widths)
    return y, (x.shape, widths, taken)


def pool_backward(dy, saved):
    shape, widths, taken = saved
    return ((np.repeat(dy, widths) * taken).reshape(shape),)


def shrink(x):
    """Shrink towards zero: flat in the middle, with kinks at both ends, and then a square root."""
    distance = np.maximum(np.abs(x) - 0.3, 0.0)
    return np.sqrt(1 + distance**2), (x, distance)


def shrink_backward(dy, saved):
    x, distance = saved
    return (dy * np.sign(x) * distance / np.sqrt(1 + distance**2),)


def huber(x):
    near = np.abs(x) < 0.5
    return np.where(near, x**2 / 2, 0.5 * (np.abs(x) - 0.25)), x


def network(x):
    """Two layers of ReLUs across rows: every entry moves many kinks."""
    rows = x.reshape(-1, 10) if x.size % 10 == 0 else x.reshape(1, -1)
    weight = np.random.default_rng(5).normal(size=(rows.shape[1], 12))
    first = rows @ weight
    second = np.maximum(first, 0.0) @ weight.T
    return np.maximum(second, 0.0), (x.shape, weight, first, second)


def network_backward(dy, saved):
    shape, weight, first, second = saved
    dfirst = (dy * (second > 0)) @ weight * (first > 0)
    return ((dfirst @ weight.T).reshape(shape),)


def network_without_a_kink_backward(dy, saved):
    shape, weight, _, second = saved
    return (((dy * (second > 0)) @ weight @ weight.T).reshape(shape),)


def changed(backward, index, change):
    """Return ``backward`` with ``change`` applied to the gradient at ``index``."""

    def wrong(dy, saved):
        (dx,) = backward(dy, saved)
        dx = dx.copy()
        dx[index] = change(dx[index])
        return (dx,)

    return wrong


def rectify_backward(dy, x):
    return (dy * (x > 0),)


FUNCTIONS = [
    Kinked(
        rectify,
        rectify_backward,
        {
            "one everywhere": lambda dy, x: (1.0 * dy,),
            "the other side": lambda dy, x: (dy * (x < 0),),
            "kink beside zero": lambda dy, x: (dy * (x > 0.01),),
            "half on the left": lambda dy, x: (dy * np.where(x > 0, 1.0, 0.5),),
            "zero": lambda dy, x: (0.0 * dy,),
            "first row": changed(rectify_backward, 0, lambda g: g + 0.1),
            "last entry": changed(rectify_backward, (-1, -1), lambda g: g + 0.5),
            "one in a thousand": changed(rectify_backward, ..., lambda g: 1.001 * g),
        },
    ),
    Kinked(
        leak,
        lambda dy, x: (dy * np.where(x > 0, 1.0, 0.1),),
        {
            "another leak": lambda dy, x: (dy * np.where(x > 0, 1.0, 0.11),),
            "no leak": lambda dy, x: (dy * (x > 0),),
        },
    ),
    Kinked(
        magnitude,
        lambda dy, x: (dy * np.sign(x),),
        {"without sign": lambda dy, x: (1.0 * dy,), "x for its sign": lambda dy, x: (dy * x,)},
    ),
    Kinked(
        clip,
        lambda dy, x: (dy * (np.abs(x) < 0.5),),
        {
            "straight through": lambda dy, x: (1.0 * dy,),
            "one side": lambda dy, x: (dy * (x < 0.5),),
        },
    ),
    Kinked(
        larger,
        lambda dy, first: (dy * first, dy * ~first),
        {
            "to both": lambda dy, first: (1.0 * dy, 1.0 * dy),
            "half to both": lambda dy, first: (dy / 2, dy / 2),
            "to the other": lambda dy, first: (dy * ~first, dy * first),
        },
        arrays=2,
    ),
    Kinked(
        pool,
        pool_backward,
        {
            "to all": lambda dy, saved: (np.repeat(dy, saved[1]).reshape(saved[0]),),
            "mean": lambda dy, saved: (np.repeat(dy / saved[1], saved[1]).reshape(saved[0]),),
        },
    ),
    Kinked(
        shrink,
        shrink_backward,
        {"without sign": lambda dy, saved: (dy * saved[1] / np.sqrt(1 + saved[1] ** 2),)},
    ),
    Kinked(
        huber,
        lambda dy, x: (dy * np.clip(x, -0.5, 0.5),),
        {"never linear": lambda dy, x: (dy * x,), "twice": lambda dy, x: (dy * np.clip(x, -1, 1),)},
    ),
    Kinked(network, network_backward, {"a kink forgotten": network_without_a_kink_backward}),
]
NAMES = [function.forward.__name__ for function in FUNCTIONS]
WRONG = [
    pytest.param(function, backward, id=f"{function.forward.__name__}, {mistake}")
    for function in FUNCTIONS
    for mistake, backward in function.wrong.items()
]


def draw(function, shape, seed):
    return list(np.random.default_rng(seed).normal(size=(function.arrays, *shape)))


@pytest.mark.parametrize("shape", SEEDS, ids=str)
@pytest.mark.parametrize("function", FUNCTIONS, ids=NAMES)
def test_no_right_gradient_is_refused(function, shape):
    for seed in range(SEEDS[shape]):
        arrays = draw(function, shape, seed)
        errors = check_operation(function.forward, function.backward, *arrays, seed=seed)
        assert max(errors.values()) <= 1e-6


@pytest.mark.parametrize("shape", SEEDS, ids=str)
@pytest.mark.parametrize(("function", "wrong"), WRONG)
def test_no_wrong_gradient_passes(function, wrong, shape):
    caught = 0
    for seed in range(SEEDS[shape]):
        arrays = draw(function, shape, seed)
        if is_right_there(function, wrong, arrays):
            continue
        with pytest.raises(GradientError, match=r"gradient of \w+ is wrong"):
            check_operation(function.forward, wrong, *arrays, seed=seed)
        caught += 1
    assert caught or len(shape) == 1


def is_right_there(function, wrong, arrays):
    """Return True where a mistake makes no difference, as where ReLU's argument is positive."""
    y, saved = function.forward(*arrays)
    dy = np.random.default_rng(0).uniform(0.5, 1.5, y.shape)
    try:
        pairs = zip(function.backward(dy, saved), wrong(dy, saved), strict=True)
    except IndexError:  # a mistake in the second dimension of a vector
        return True
    return all(np.allclose(mistaken, right) for mistaken, right in pairs)


def test_a_million_entries():
    function = FUNCTIONS[0]
    (x,) = draw(function, LARGEST, 0)
    assert check_operation(function.forward, function.backward, x)["x"] <= 1e-6
    with pytest.raises(GradientError, match=r"rectify: the gradient of x is wrong; at index \(1499, 999\)"):
        check_operation(function.forward, function.wrong["last entry"], x)
    with pytest.raises(GradientError, match=r"rectify: the gradient of x is wrong; at index \(0, \d+\)"):
        check_operation(function.forward, function.wrong["first row"], x)
    with pytest.raises(GradientError, match="rectify: the gradient of x is wrong"):
        check_operation(function.forward, function.wrong["kink beside zero"], x)
