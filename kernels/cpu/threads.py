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

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minitransformer.kernels.cpu.compiling import kernel
from minitransformer.kernels.cpu.records import WORK, address_of
from minitransformer.kernels.cpu.vectors import add_atomically, load_integer, look_at, pause

NUMBERS = CALLS, INSIDE, KERNEL, RECORD, WORKERS, STATES, WAIT, POST, REST = range(9)
"""The numbers of a job: the calls so far, the workers that have entered (CLOSED more while none may), the
addresses of a kernel and its record, how many may work, the address of two numbers per worker (1 if it is
asleep; the address of its semaphore), and those of functions of the C library: ``sem_wait``, ``sem_post`` and
``usleep``."""
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
        self.job = np.zeros(len(NUMBERS), np.int64)
        self.job[[INSIDE, STATES]] = CLOSED, address_of(self.workers)
        if _C is not None:
            functions = (_C.sem_wait, _C.sem_post, _C.usleep)
            self.job[[WAIT, POST, REST]] = [ctypes.cast(one, ctypes.c_void_p).value for one in functions]
        self.address = address_of(self.job)
        self.work, self.wait = (_FUNCTION(part.address()) for part in (work_together, wait_for_jobs))
        self.semaphores = [None]  # by worker
        self.counter = np.zeros(1, np.int64)
        self.scratch = np.empty(0, np.float32)  # kept for the next call

    def run(self, kernel, record, scratch_floats, workers):
        stride = scratch_floats + 32  # room to align to a cache line
        if self.scratch.size < workers * stride:
            self.scratch = np.empty(workers * stride, np.float32)
        self.counter[0] = 0
        record[-len(WORK) :] = address_of(self.counter), address_of(self.scratch), 4 * stride
        self.job[KERNEL : WORKERS + 1] = kernel, address_of(record), workers
        while len(self.semaphores) < workers:
            self._start(len(self.semaphores))
        if _C is None:
            for worker in range(1, workers):
                if self.workers[worker, 0] == 1:
                    self.semaphores[worker].release()
        self.work(self.address, 0)

    def _start(self, worker):
        if _C is None:
            semaphore = threading.Semaphore(0)
        else:
            semaphore = np.zeros(16, np.int64)  # a sem_t takes at most 64 bytes
            self.workers[worker, 1] = address_of(semaphore)
            _C.sem_init(ctypes.c_void_p(address_of(semaphore)), 0, 0)
        self.semaphores.append(semaphore)
        with contextlib.suppress(RuntimeError):  # the system has no more threads: the others do its work
            threading.Thread(target=self._serve, args=(worker, semaphore), daemon=True).start()

    def _serve(self, worker, semaphore):
        while True:
            self.wait(self.address, worker)
            semaphore.acquire()  # if it is one of Python's: otherwise no wait ends


# On Linux threads wait for semaphores of the C library. With Python's, to wake and to sleep a thread needs
# Python's lock, which the thread that computes holds just then.
_C = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
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
def work_together(job, worker):
    """Open the job, wake who sleeps, work, close the job, and wait for the workers inside.

    This is one call from Python, so that Ctrl-C can't end it while workers use its memory.
    """
    add_atomically(job + 8 * INSIDE, -CLOSED)
    add_atomically(job + 8 * CALLS, 1)  # after it is open: a worker looks once per call whether it is
    if load_integer(job + 8 * POST):
        for other in range(1, load_integer(job + 8 * WORKERS)):
            asleep = load_integer(job + 8 * STATES) + 16 * other
            if look_at(asleep) == 1:
                add_atomically(asleep, -1)
                call_function(load_integer(job + 8 * POST), load_integer(asleep + 8), 0)
    call_function(load_integer(job + 8 * KERNEL), load_integer(job + 8 * RECORD), worker)
    add_atomically(job + 8 * INSIDE, CLOSED)
    looks = 0
    while look_at(job + 8 * INSIDE) != CLOSED:
        pause()
        looks += 1
        if looks > LOOKS and load_integer(job + 8 * REST):  # another process has its core
            call_function(load_integer(job + 8 * REST), 1, 0)
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
