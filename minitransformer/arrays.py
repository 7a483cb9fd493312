"""NumPy or CuPy, decided by the array in hand.

Every function of the library asks ``array_module`` for its namespace on every call, so that a CPU
model and a GPU model can be compared in one process. CuPy is imported only when a GPU is asked for.
"""

import functools
import importlib
import sys

import numpy as np

from minitransformer.errors import DeviceError, InputError

ALIGNMENT = 64  # bytes: a cache line, and an AVX-512 vector


def array_module(array):
    """Return the namespace that ``array`` belongs to: ``cupy`` for a CuPy array, else ``numpy``."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    return np


@functools.cache  # NumPy makes the name anew each time
def name_of_type(dtype):
    """Return the name of a NumPy type."""
    return dtype.name


def erf(x):
    """Return the error function of every element of ``x``, in its type (Abramowitz & Stegun 7.1.1)."""
    scipy_name = "scipy.special" if array_module(x) is np else "cupyx.scipy.special"
    return importlib.import_module(scipy_name).erf(x)


def device_module(device):
    """Return the namespace for ``device``.

    Raises InputError for a name other than ``"cpu"`` and ``"cuda"``, and DeviceError when ``"cuda"``
    is asked for and no GPU can be used; the message says why.
    """
    if device == "cpu":
        return np
    if device != "cuda":
        raise InputError(f"there is no device {device!r}; expected 'cpu' or 'cuda'")
    try:
        cupy = importlib.import_module("cupy")
    except ModuleNotFoundError:
        raise DeviceError(
            "device 'cuda' needs CuPy, which is not installed; run "
            "pip install 'cupy-cuda12x[ctk]' (or cupy-cuda13x), or use device 'cpu'"
        ) from None
    except OSError as error:  # CuPy makes its cache folder when it is imported
        raise DeviceError(
            f"CuPy cannot be imported: {error}; name a folder with room in the environment variable "
            "CUPY_CACHE_DIR, or use device 'cpu'"
        ) from error
    except ImportError as error:
        raise DeviceError(f"CuPy cannot be imported: {error}; reinstall it, or use device 'cpu'") from error
    if not cupy.is_available():
        raise DeviceError(
            "device 'cuda' needs an NVIDIA GPU and its driver, and none was found; use device 'cpu'"
        )
    return cupy


def to_numpy(array):
    """Return ``array`` as a NumPy array: itself if it is one, else a copy from the GPU."""
    return array if array_module(array) is np else array.get()


def aligned_zeros(xp, size, dtype):
    """Return ``size`` zeros of ``dtype`` in one dimension, their first byte on a 64-byte boundary."""
    itemsize = np.dtype(dtype).itemsize
    if xp is not np:
        return xp.zeros(size, dtype)  # CuPy's allocator aligns to 512 bytes
    spare = ALIGNMENT // itemsize
    block = np.zeros(size + spare, dtype)
    skip = (-block.ctypes.data % ALIGNMENT) // itemsize
    return block[skip : skip + size]
