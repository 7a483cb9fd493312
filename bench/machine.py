"""The machine and the versions on which a measurement was made."""

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path

from minitransformer.command.info import collect_facts

PEERS = "torch", "jax"


def describe_machine():
    """Return the processor, its number of cores and the versions in use, to be recorded with results."""
    facts = collect_facts()
    return {
        "processor": _processor(),
        "cores": len(list_cores()),
        "system": f"{platform.system()} {platform.machine()}",
        **{
            name: facts[name]
            for name in ("minitransformer", "python", "numpy", "scipy", "numba", "BLAS", "threads")
        },
        **{name: facts[name] for name in ("kernels", "kernel threads") if name in facts},
        **_versions_of_peers(),
    }


def list_cores():
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count()))


def _versions_of_peers():
    versions = {}
    for peer in PEERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[peer] = importlib.metadata.version(peer)
    return versions


def _processor():
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
