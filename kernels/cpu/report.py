"""A report on vectors, threads and compiled code, as ``minitransformer info`` prints it."""

from typing import NamedTuple

from minitransformer.kernels.cpu.compiling import cache_folder
from minitransformer.kernels.cpu.threads import thread_count
from minitransformer.kernels.cpu.vectors import LANES
from minitransformer.system.cache import is_temporary


class Report(NamedTuple):
    """``lanes`` is the number of float32 per vector, ``cache`` a text."""

    lanes: int
    threads: int
    cache: str


def report():
    """Return the ``Report`` of this process; it compiles nothing."""
    return Report(LANES, thread_count(), _describe_cache())


def _describe_cache():
    try:
        folder = cache_folder()
    except OSError:
        return "none: kernels are compiled in every process"
    if is_temporary(folder):
        return f"{folder}, until this process ends: kernels are compiled in every process"
    compiled = sorted({path.name.split("-")[0].split(".")[-1] for path in folder.rglob("*.nbi")})
    if compiled:
        return f"{folder}, with {', '.join(compiled)}"
    return f"{folder}, still empty: kernels are compiled when they are first called"
