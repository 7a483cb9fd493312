"""The thread pool that runs kernels: OpenMP's, through Numba.

Idle threads sleep. If they spun, as OpenMP's do by default, they would occupy the cores that the threads of
NumPy's BLAS need between two kernels.
"""

import contextlib
import functools
import importlib
import os
import threading
import warnings

import numba
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from minitransformer.kernels.cpu.compiling import OPTIONS, compile_once

WORK = np.dtype([(name, np.int64) for name in ("counter", "scratch", "scratch_bytes")])
"""What workers share: the address of a counter of tasks, and of scratch memory, so many bytes per worker."""

_starting = threading.Lock()
_lock = threading.Lock()  # one call at a time: it uses every core, and some pools forbid concurrent calls


def thread_count():
    """Return the number of threads that kernels may use, as set by ``numba.set_num_threads``."""
    return numba.get_num_threads() if threading_layer() else 1


def run(kernel, record, scratch_floats, workers):
    """Run ``kernel`` on a ``record`` in ``workers`` threads, with ``scratch_floats`` floats for each."""
    address, launch = kernel.address(), _launcher()
    scratch = np.empty((workers, scratch_floats + 32), np.float32)  # room to align to a cache line
    counter = np.zeros(1, np.int64)
    record["work"] = counter.ctypes.data, scratch.ctypes.data, scratch.strides[0]
    with _lock:
        launch(address, record.ctypes.data, workers)


def threading_layer():
    """Start Numba's threads; return their layer ("omp", "tbb" or "workqueue"), or None if there is none."""
    with _starting:
        return _start_layer()


@functools.cache
def _start_layer():
    _load_pool()
    try:
        numba.get_num_threads()  # starts them
    except ValueError as error:
        warnings.warn(
            f"Numba finds no threads ({' '.join(str(error).split())}), so kernels run on one",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return numba.threading_layer()


@functools.cache
def _launcher():
    signature = "void(int64, int64, int64)"
    if threading_layer() is None:
        return numba.njit(signature, **OPTIONS)(_launch)

    def compile_launch(cache):
        return numba.njit(signature, parallel=True, cache=cache, **OPTIONS)(_launch)

    return compile_once(compile_launch, "the thread launcher", 2)


def _launch(function, record, workers):
    if workers == 1:
        call_function(function, record, 0)
    else:
        for worker in prange(workers):
            call_function(function, record, worker)


@intrinsic
def call_function(typingctx, function, record, worker):
    """Call the machine code at the address ``function``."""
    integer = ir.IntType(64)
    pointer = ir.FunctionType(integer, [integer, integer]).as_pointer()

    def emit(context, builder, sig, args):
        return builder.call(builder.inttoptr(args[0], pointer), args[1:])

    return types.int64(types.int64, types.int64, types.int64), emit


def _load_pool():
    """Load OpenMP where there is one, with idle threads set to sleep; it reads that setting only now."""
    if "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
        numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
    policy = os.environ.get("OMP_WAIT_POLICY")
    os.environ["OMP_WAIT_POLICY"] = policy or "passive"
    try:
        with contextlib.suppress(ImportError):
            importlib.import_module("numba.np.ufunc.omppool")
    finally:
        if policy is None:
            del os.environ["OMP_WAIT_POLICY"]
