"""The pool of threads that runs kernels.

A call writes what is to be run to the job, opens it, wakes the other workers and works itself. Workers take
tasks until none is left. Then the call closes the job, and waits only for workers that are in the middle of a
task. A worker that another process kept from starting finds the job closed: a core that is taken away costs
the call what it would have computed, and no more. At a barrier, all would wait for it.

Between two calls a worker looks for the next job for some microseconds, then sleeps.
"""

import contextlib
import ctypes
import functools
import os
import sys
import threading
import time

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minitransformer.kernels.cpu.compiling import kernel
from minitransformer.kernels.cpu.records import WORK, address_of
from minitransformer.kernels.cpu.vectors import add_atomically, load_integer, look_at, pause

CALLS, INSIDE, KERNEL, RECORD, WORKERS, STATES, WAIT = range(7)
"""The numbers of a job: the calls so far, the workers that have entered (CLOSED more while none may), the
addresses of a kernel and its record, how many may work, the address of two numbers per worker (1 if it is
asleep; the address of its semaphore), and that of the C library's function that waits for a semaphore."""
CLOSED = 2**32
LOOKS = 2000  # at the job, each some 25 nanoseconds, before a worker sleeps

_lock = threading.Lock()  # one call at a time: it uses every core
_limit = None


def thread_count():
    """Return the number of threads that kernels may use: that of Numba, or fewer under ``limit_threads``."""
    return _limit or numba.config.NUMBA_NUM_THREADS


@contextlib.contextmanager
def limit_threads(count):
    """Within this block kernels use at most ``count`` threads, in the whole process."""
    global _limit  # noqa: PLW0603  a property of the process
    most = numba.config.NUMBA_NUM_THREADS
    if not 1 <= count <= most:
        raise ValueError(f"limit_threads: count is {count}; expected 1 to {most} (NUMBA_NUM_THREADS)")
    before, _limit = _limit, count
    try:
        yield
    finally:
        _limit = before


def run(kernel, record, scratch_floats, workers):
    """Run ``kernel`` on a ``record`` in ``workers`` threads, with ``scratch_floats`` floats for each."""
    address = kernel.address()
    with _lock:
        _pool().run(address, record, scratch_floats, workers)


class _Pool:
    """Threads that wait for jobs. The thread that calls ``run`` is worker 0."""

    def __init__(self):
        self.workers = np.zeros((numba.config.NUMBA_NUM_THREADS, 2), np.int64)  # asleep, semaphore
        self.job = np.zeros(7, np.int64)
        self.job[[INSIDE, STATES, WAIT]] = CLOSED, address_of(self.workers), _find_wait()
        self.address = address_of(self.job)
        parts = (part.address() for part in (open_job, work_and_close, wait_for_jobs))
        self.open, self.work_and_close, self.wait = map(_FUNCTION, parts)
        self.wake = [None]  # by worker, a function that wakes it
        self.counter = np.zeros(1, np.int64)
        self.scratch = np.empty(0, np.float32)  # kept for the next call

    def run(self, kernel, record, scratch_floats, workers):
        stride = scratch_floats + 32  # room to align to a cache line
        if self.scratch.size < workers * stride:
            self.scratch = np.empty(workers * stride, np.float32)
        self.counter[0] = 0
        record[-len(WORK) :] = address_of(self.counter), address_of(self.scratch), 4 * stride
        self.job[KERNEL : WORKERS + 1] = kernel, address_of(record), workers
        while len(self.wake) < workers:
            self._start(len(self.wake))
        self.open(self.address, 0)
        try:
            for worker in range(1, workers):
                if self.workers[worker, 0] == 1:
                    self.workers[worker, 0] = 0
                    self.wake[worker]()
        finally:  # Ctrl-C may arrive at any line
            self.work_and_close(self.address, 0)
            self._wait_for_workers()

    def _wait_for_workers(self):
        """Wait until no worker is in the middle of a task; then the arrays may be freed."""
        try:
            while self.job[INSIDE] != CLOSED:
                time.sleep(0)
        except BaseException:
            self._wait_for_workers()
            raise

    def _start(self, worker):
        semaphore = _Semaphore() if self.job[WAIT] else threading.Semaphore(0)
        self.workers[worker, 1] = getattr(semaphore, "address", 0)
        self.wake.append(semaphore.release)
        threading.Thread(target=self._serve, args=(worker, semaphore), daemon=True).start()

    def _serve(self, worker, semaphore):
        while True:
            self.wait(self.address, worker)
            semaphore.acquire()


class _Semaphore:
    """A semaphore of the C library, for which a thread can wait without Python's lock.

    To wake and to sleep a thread of Python needs that lock, which the thread that computes holds just then.
    """

    def __init__(self):
        self.memory = np.zeros(16, np.int64)  # a sem_t takes at most 64 bytes
        self.address = address_of(self.memory)
        self.pointer = ctypes.c_void_p(self.address)
        _C.sem_init(self.pointer, 0, 0)

    def release(self):
        _C.sem_post(self.pointer)


_C = ctypes.PyDLL(None) if sys.platform.startswith("linux") else None


def _find_wait():
    """Return the address of ``sem_wait``, or 0 on systems where threads wait for Python's semaphores."""
    return ctypes.cast(_C.sem_wait, ctypes.c_void_p).value if _C is not None else 0


_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)  # called without Python's lock


@functools.cache
def _pool():
    return _Pool()


def _start_anew():
    """Forget the threads of the process that this one was forked from, which it does not have."""
    global _lock  # noqa: PLW0603  another thread may have held it
    _lock = threading.Lock()
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


@kernel(None, seconds=0)
def open_job(job, _):
    """Let workers enter."""
    add_atomically(job + 8 * INSIDE, -CLOSED)
    return add_atomically(job + 8 * CALLS, 1)  # after it is open: a worker looks once per call whether it is


@kernel(None, seconds=0)
def work_and_close(job, worker):
    """Work, let no other worker enter, and wait a little for those inside."""
    call_function(load_integer(job + 8 * KERNEL), load_integer(job + 8 * RECORD), worker)
    add_atomically(job + 8 * INSIDE, CLOSED)
    looks = 0
    while look_at(job + 8 * INSIDE) != CLOSED and looks < LOOKS:
        pause()
        looks += 1
    return 0


@kernel(None, seconds=0)
def wait_for_jobs(job, worker):
    """Look for jobs and work. After a while without one sleep, or return if only Python can wait."""
    asleep = load_integer(job + 8 * STATES) + 16 * worker
    semaphore, seen, looks = load_integer(asleep + 8), 0, 0
    add_atomically(asleep, -look_at(asleep))
    while looks < LOOKS:
        calls = look_at(job + 8 * CALLS)
        if calls != seen:
            seen, looks = calls, 0
            if add_atomically(job + 8 * INSIDE, 1) < CLOSED and worker < load_integer(job + 8 * WORKERS):
                call_function(load_integer(job + 8 * KERNEL), load_integer(job + 8 * RECORD), worker)
            add_atomically(job + 8 * INSIDE, -1)
        pause()
        looks += 1
        if looks == LOOKS:
            add_atomically(asleep, 1 - look_at(asleep))
            if look_at(job + 8 * CALLS) != seen and add_atomically(asleep, -1) == 1:
                looks = 0  # a job was opened before it could be seen that this worker sleeps
            elif semaphore:
                call_function(load_integer(job + 8 * WAIT), semaphore, 0)
                add_atomically(asleep, -look_at(asleep))
                looks = 0
    return 0


@intrinsic
def call_function(typingctx, function, record, worker):
    """Call the machine code at the address ``function``."""
    integer = ir.IntType(64)
    pointer = ir.FunctionType(integer, [integer, integer]).as_pointer()

    def emit(context, builder, sig, args):
        return builder.call(builder.inttoptr(args[0], pointer), args[1:])

    return types.int64(types.int64, types.int64, types.int64), emit
