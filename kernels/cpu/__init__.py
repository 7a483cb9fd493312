"""Kernels for the processor: vectors and threads through Numba, for float32 arrays of NumPy."""

import contextlib
import functools
import importlib.util
import os
import sys
import warnings

import numpy as np

_forked = False
WORTH = (
    1_000_000  # multiplications in q kᵀ: with less to do, definitions take as long, or Numba's loading longer
)


def accepts_attention(q, k, v, **settings):
    """Return True for arrays of NumPy, wherever kernels can run, unless there is little to do."""
    if not all(type(x) is np.ndarray and x.ndim == 4 for x in (q, k, v)):
        return False
    return q.size * k.shape[1] >= WORTH and usable()


def usable():
    """Return True where Numba is, unless this process was forked from one that had threads."""
    if _forked:
        warnings.warn(
            "this process was forked from one in which OpenMP's threads may have been running (kernels start "
            "them, and PyTorch does), and they do not survive that: it runs the slower definitions; start "
            "processes by 'spawn' or 'forkserver' instead",
            RuntimeWarning,
            stacklevel=2,
        )
    return has_numba() and not _forked


@functools.cache
def has_numba():
    """Return True if Numba is installed, can be imported and compiles."""
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        numba = importlib.import_module("numba")
    except (ImportError, ValueError) as error:  # the latter about its environment variables
        warnings.warn(
            f"Numba is installed but cannot be imported, so definitions run in place of kernels: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return not numba.config.DISABLE_JIT


def _after_fork():
    global _forked  # noqa: PLW0603  a process is forked or it is not
    numba = sys.modules.get("numba")
    with contextlib.suppress(ValueError, AttributeError):  # Numba has not started its threads
        _forked = bool(numba.threading_layer())
    _forked |= "torch" in sys.modules  # whose threads are the same OpenMP's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
