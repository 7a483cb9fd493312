"""Let the C library keep the memory of large arrays for the next step instead of giving it back."""

import contextlib
import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def reuse_freed_memory():
    """Make glibc serve large arrays from its heap and keep what is freed; do nothing elsewhere.

    Otherwise every large temporary is fresh memory from the kernel, which costs a page fault for each 4 KiB.
    This changes the whole process, so only the trainer and the command line call it, never an import.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def measure_peak_memory():
    """Return the most memory that this process has held, in bytes; None where the system does not say."""
    try:
        import resource  # noqa: PLC0415  not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
