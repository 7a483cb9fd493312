"""Dropout (Srivastava et al., JMLR 15, 2014), inverted: scaled in training, nothing to do afterwards."""

from typing import NamedTuple

from minitransformer.arrays import array_module
from minitransformer.functional.philox import Key, keep_mask
from minitransformer.functional.rules import backward, forward


class DropoutSaved(NamedTuple):
    """What ``dropout_backward`` needs: not the mask, but what makes it again."""

    rate: float
    key: Key


@forward
def dropout(x, *, rate, key):
    """Return ``x · m / (1 − rate)``, m a mask of zeros and ones with P(0) = ``rate``.

    ``x`` (…, D), 0 ≤ ``rate`` < 1, ``key`` a ``Key`` → (…, D). The mask does not depend on x, so the
    gradient passes through the same mask: dx = dy · m / (1 − rate).
    """
    check_rate("dropout", rate)
    return _masked(x, rate, key), DropoutSaved(rate, key)


@backward
def dropout_backward(dy, saved):
    """Return ``(dx,)``."""
    return (_masked(dy, saved.rate, saved.key),)


def _masked(x, rate, key):
    y = x * keep_mask(array_module(x), key, x.shape, rate)
    y *= 1 / (1 - rate)
    return y


def check_rate(function_name, rate):
    """Raise ValueError unless 0 ≤ ``rate`` < 1."""
    if not 0 <= rate < 1:
        raise ValueError(
            f"{function_name}: dropout is {rate}; expected a number from 0 up to, not including, 1"
        )
