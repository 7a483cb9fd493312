"""Inverted dropout (Srivastava et al., JMLR 15, 2014): scaled in training, the identity in evaluation."""

from typing import Any, NamedTuple

from minitransformer.arrays import array_module
from minitransformer.functional.philox import Key, keep_mask
from minitransformer.functional.rules import backward, check_gradient, forward


class DropoutSaved(NamedTuple):
    """What ``dropout_backward`` needs: not the mask, but what it is computed from."""

    rate: float
    key: Key
    shape: tuple  # of x
    dtype: Any  # of x


@forward
def dropout(x, *, rate, key):
    """Return ``y = x · keep / (1 − rate)``, where ``keep`` is False with probability ``rate``.

    ``x`` (…, D), 0 ≤ ``rate`` < 1, ``key`` a ``Key`` → (…, D). ``keep`` does not depend on x, so

        dx = dy · keep / (1 − rate)
    """
    check_rate("dropout", rate)
    keep = keep_mask(array_module(x), key, x.shape, rate)  # (…, D)
    return drop(x, keep, rate), DropoutSaved(rate, key, x.shape, x.dtype)


@backward
def dropout_backward(dy, saved):
    """Return ``(dx,)``."""
    rate, key, shape, _ = saved
    check_gradient("dropout_backward", dy, shape)
    keep = keep_mask(array_module(dy), key, dy.shape, rate)  # the same as in the forward
    return (drop(dy, keep, rate),)


def drop(x, keep, rate):
    """Return ``x · keep / (1 − rate)``, ``x`` itself if ``keep`` is None: dropout of x or of its gradient."""
    if keep is None:
        return x
    y = x * keep
    y *= 1 / (1 - rate)
    return y


def check_rate(function_name, rate):
    """Raise ValueError unless 0 ≤ ``rate`` < 1."""
    if not 0 <= rate < 1:
        raise ValueError(
            f"{function_name}: dropout is {rate}; expected a number from 0 up to, not including, 1"
        )
