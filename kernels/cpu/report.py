"""What the kernels on this processor run with, for people to read."""

from typing import NamedTuple

import numba

from minitransformer.kernels.cpu.compiling import cache_folder
from minitransformer.kernels.cpu.threads import threading_layer
from minitransformer.kernels.cpu.vectors import WIDTH
from minitransformer.system.files import is_temporary


class Report(NamedTuple):
    """``width`` is the number of float32 in a vector; the rest are sentences."""

    width: int
    threads: str
    cache: str


def report():
    """Return the ``Report`` of this process; nothing is compiled for it."""
    layer = threading_layer()
    threads = f"{numba.config.NUMBA_NUM_THREADS}, by {layer}" if layer else "1: Numba has no threads here"
    return Report(WIDTH, threads, _cache())


def _cache():
    try:
        folder = cache_folder()
    except OSError:
        return "none: kernels are compiled anew in every process"
    if is_temporary(folder):
        return f"{folder}, until this process ends: kernels are compiled anew in every process"
    compiled = sorted({path.name.split("-")[0].split(".")[-1] for path in folder.rglob("*.nbi")})
    if compiled:
        return f"{folder}, with {', '.join(compiled).replace('_launch', 'the launch of threads')}"
    return f"{folder}, still empty: kernels are compiled when they are first called"
