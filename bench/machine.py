"""What a measurement was made on."""

import os
import platform
from pathlib import Path

from minitransformer.info import information


def machine():
    """Return the processor, its number of cores and the versions in use, for the record of a benchmark."""
    facts = information()
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        **{name: facts[name] for name in ("minitransformer", "python", "numpy", "scipy", "BLAS", "threads")},
    }


def _processor():
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
