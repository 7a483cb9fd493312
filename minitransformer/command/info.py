"""The command ``info``: versions, processors, libraries, and what is accelerated."""

import importlib.metadata
import os
import platform

import numpy as np

import minitransformer
from minitransformer import kernels
from minitransformer.arrays import device_module
from minitransformer.command.console import print_lines
from minitransformer.errors import DeviceError
from minitransformer.system.cache import is_temporary, make_cache_folder
from minitransformer.system.processors import THREAD_VARIABLES, count_processors

LIBRARIES = ("numpy", "scipy", "numba", "safetensors", "tokenizers")
NAME_WIDTH = 19


def info():
    """Show versions, processors and what is accelerated."""
    for name, value in collect_facts().items():
        print_lines(f"{name:<{NAME_WIDTH}}{value}", NAME_WIDTH)


def collect_facts():
    """Return what ``info`` shows as ``{name: value}``, in that order."""
    blas = np.show_config("dicts")["Build Dependencies"]["blas"]
    limits = [f"{name}={os.environ[name]}" for name in THREAD_VARIABLES if name in os.environ]
    return {
        "minitransformer": minitransformer.__version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        **{name: _find_version(name) for name in LIBRARIES},
        "BLAS": f"{blas['name']} {blas['version']}",
        "threads": ", ".join(limits) or f"{count_processors()}, one per processor",
        "cache": _describe_cache(),
        "GPU": _describe_gpu(),
        **_describe_kernels(),
    }


def _find_version(library):
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _describe_cache():
    try:
        folder = make_cache_folder()
    except OSError as error:
        return f"none ({error})"
    return f"{folder}, until this process ends" if is_temporary(folder) else str(folder)


def _describe_kernels():
    if not kernels.cpu.usable():
        return {"kernels": "none: Numba is missing or switched off, so every operation runs its definition"}
    from minitransformer.kernels.cpu.report import report  # noqa: PLC0415  loads Numba

    facts = report()
    return {
        "kernels": "; ".join(
            f"{name}: {', '.join(kernel.types)} by {kernel.module}"
            for name, registered in kernels.KERNELS.items()
            for kernel in registered
        ),
        "kernel vectors": f"{facts.lanes} float32",
        "kernel threads": facts.threads,
        "kernel cache": facts.cache,
    }


def _describe_gpu():
    try:
        cupy = device_module("cuda")
    except DeviceError as error:
        return f"none ({error})"
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return f"{name}, CuPy {cupy.__version__}"
