"""A report on vectors, threads and compiled code, as ``minitransformer info`` prints it."""

from typing import NamedTuple

import numba

from minitransformer.kernels.cpu.compiling import cache_folder
from minitransformer.kernels.cpu.threads import threading_layer
from minitransformer.kernels.cpu.vectors import LANES
from minitransformer.system.cache import is_temporary


class Report(NamedTuple):
    """``lanes`` is the number of float32 per vector; the others are texts."""

    lanes: int
    threads: str
    cache: str


def report():
    """Return the ``Report`` of this process; it compiles nothing."""
    layer = threading_layer()
    threads = f"{numba.config.NUMBA_NUM_THREADS}, by {layer}" if layer else "1: Numba has no threads here"
    return Report(LANES, threads, _describe_cache())


def _describe_cache():
    try:
        folder = cache_folder()
    except OSError:
        return "none: kernels are compiled in every process"
    if is_temporary(folder):
        return f"{folder}, until this process ends: kernels are compiled in every process"
    compiled = sorted({path.name.split("-")[0].split(".")[-1] for path in folder.rglob("*.nbi")})
    if compiled:
        return f"{folder}, with {', '.join(compiled).replace('_launch', 'the thread launcher')}"
    return f"{folder}, still empty: kernels are compiled when they are first called"
