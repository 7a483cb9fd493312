"""The machine and the versions on which a measurement was made."""

import contextlib
import importlib.metadata
import platform
from pathlib import Path

from minitransformer.command.info import collect_facts
from minitransformer.system.processors import count_processors

PEERS = "torch", "jax"


def describe_machine():
    """Return the processor, its number of cores and the versions in use, to be recorded with results."""
    facts = collect_facts()
    return {
        "processor": _processor(),
        "cores": count_processors(),
        "system": f"{platform.system()} {platform.machine()}",
        **{
            name: facts[name]
            for name in ("minitransformer", "python", "numpy", "scipy", "numba", "BLAS", "threads")
        },
        **{name: facts[name] for name in ("kernels", "kernel vectors", "kernel threads") if name in facts},
        **_versions_of_peers(),
    }


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
