"""The memory of the process: kept by the C library for reuse, and measured."""

import contextlib
import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def reuse_freed_memory():
    """Make glibc allocate large arrays on its heap and keep freed memory; do nothing with other C libraries.

    By default glibc maps new memory for every large temporary, which costs a page fault per 4 KiB. This
    changes the whole process, so only the trainer and the command line call it, never an import.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def measure_peak_memory():
    """Return the peak resident memory of this process in bytes, or None if the system does not report it."""
    try:
        import resource  # noqa: PLC0415  not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
