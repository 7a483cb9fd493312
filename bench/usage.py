"""What the system counts of a process: its memory and its page faults.

It imports nothing that starts threads: a contender's process is pinned to its cores later.
"""

from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def count_page_faults():
    """Return the number of page faults so far that needed no disk, or None if the system does not count them.

    New memory costs one per page, of 4 KiB or of 2 MiB.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else None


def read_peak_memory():
    """Return the peak resident memory in bytes since the start or ``reset_peak_memory``, or None if unknown.

    ``getrusage`` would report that of the process that started this one, if it is higher.
    """
    return _read_status("VmHWM")


def read_memory():
    """Return the resident memory in bytes, or None if the system does not report it."""
    return _read_status("VmRSS")


def reset_peak_memory():
    """Make the present memory the peak; only Linux can."""
    CLEAR.write_text("5")


def _read_status(name):
    if not STATUS.exists():
        return None
    lines = (line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return next((1024 * int(line.split()[1]) for line in lines), None)
