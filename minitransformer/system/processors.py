"""The processors that this process may use, and the variables that limit its threads."""

import os

THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")


def list_processors():
    """Return the numbers of the processors that this process may use, sorted.

    Where the system has no affinity (macOS, Windows), these are all processors.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))


def count_processors():
    """Return how many processors this process may use."""
    return len(list_processors())
