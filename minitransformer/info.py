"""What this installation is: versions, processors, libraries, and what is accelerated."""

import importlib.metadata
import os
import platform

import numpy as np

import minitransformer
from minitransformer.arrays import device_module
from minitransformer.errors import DeviceError

LIBRARIES = ("numpy", "scipy", "safetensors", "tokenizers")
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


def information():
    """Return ``{what: value}`` in the order in which it should be read."""
    blas = np.show_config("dicts")["Build Dependencies"]["blas"]
    limits = [f"{name}={os.environ[name]}" for name in THREAD_VARIABLES if name in os.environ]
    return {
        "minitransformer": minitransformer.__version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "BLAS": f"{blas['name']} {blas['version']}",
        "threads": ", ".join(limits) or f"{os.cpu_count()}, one for each processor",
        "GPU": _gpu(),
        "accelerated": "nothing yet: every operation runs its definition in array code",
    }


def _gpu():
    try:
        cupy = device_module("cuda")
    except DeviceError as error:
        return f"none ({error})"
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return f"{name}, CuPy {cupy.__version__}"
