"""Comparison of fused attention on the CPU with its definition."""

import numpy as np

from minitransformer import functional
from minitransformer.functional import Key
from minitransformer.kernels.cpu import attention as fused

FLOOR = 8 * 2.0**-24  # at half of it, one problem in a thousand fails by chance
KEY = Key(0x0123456789ABCDEF, 77)


def draw(seed, batch, queries, keys, heads, kv_heads, head_width):
    """Return random q, k, v and dy."""
    random = np.random.default_rng(seed)
    q, dy = random.standard_normal((2, batch, queries, heads, head_width), np.float32)
    k, v = random.standard_normal((2, batch, keys, kv_heads, head_width), np.float32)
    return q, k, v, dy


def value_and_gradients(pair, q, k, v, dy, **arguments):
    """Return y, dq, dk, dv of a forward and its backward."""
    forward, backward = pair
    y, saved = forward(q, k, v, **arguments)
    return y, *backward(dy, saved)


DEFINITION = functional.attention, functional.attention_backward
FUSED = fused.attention, fused.attention_backward


def check(q, k, v, dy, pair=FUSED, **arguments):
    """Fail if the error of ``pair`` exceeds twice the definition's in float32, or three times for gradients.

    In addition it may err by the rounding of its formula, because the definition may happen to be exact where
    few keys are visible: relative to the size of the result, for y to that of v, for dv to that of dy, for dq
    and dk to that of dP − delta = dy·v − dy·y, all times dropout's factor. dv of a key is a sum over all
    queries, one after the other, whose error grows with the root of their number.
    """
    exact = value_and_gradients(DEFINITION, *(x.astype(np.float64) for x in (q, k, v, dy)), **arguments)
    plain = value_and_gradients(DEFINITION, q, k, v, dy, **arguments)
    ours = value_and_gradients(pair, q, k, v, dy, **arguments)
    q_size, k_size, v_size, dy_size = (np.abs(x).max(initial=0) for x in (q, k, v, dy))
    slope = np.sqrt(q.shape[3]) * dy_size * v_size * arguments.get("scale", 1 / np.sqrt(q.shape[3]))
    factor = 1 / (1 - arguments.get("dropout", 0))
    together = np.sqrt(q.shape[1] * q.shape[2] / k.shape[2])
    sizes = (factor * size for size in (v_size, slope * k_size, slope * q_size, together * dy_size))
    for name, times, best, theirs, mine, size in zip(
        ("y", "dq", "dk", "dv"), (2, 3, 3, 3), exact, plain, ours, sizes, strict=True
    ):
        assert mine.dtype == np.float32 and mine.shape == best.shape
        error, allowed = (np.abs(x - best).max(initial=0) for x in (mine, theirs))
        floor = FLOOR * max(size, np.abs(best).max(initial=0))
        assert error <= times * allowed + floor, f"{name}: {error:.2e}, definition {allowed:.2e}"
    return ours


def some_bias(shape, dtype):
    """Return a bias with invisible entries."""
    random = np.random.default_rng(len(shape))
    bias = random.standard_normal(shape).astype(dtype)
    invisible = -np.inf if bias.dtype == np.float16 else -1e31
    return np.where(random.random(shape) < 0.2, bias.dtype.type(invisible), bias)
