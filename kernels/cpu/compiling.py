"""Compiling with Numba: the options, the cache on disk, and the announcement on standard error.

A kernel is compiled when it is first called, which takes seconds, and cached on disk for the next process.
The name of the cache folder contains a hash of all sources of the code, because Numba's own cache notices an
edit only in the file of the function itself, not in the files of the functions that it calls.
"""

import contextlib
import functools
import hashlib
import pickle
import shutil
import sys
import threading
import time
import warnings
from pathlib import Path

import llvmlite
import numba
from numba import types
from numba.core import event

import minitransformer
from minitransformer.system.cache import CACHE_HINT, is_temporary, is_writable, make_cache_folder

OPTIONS = {
    "nogil": True,
    "error_model": "numpy",  # no checks for division by zero
    "fastmath": {"contract"},  # a·b + c may round once; infinities stay infinities
    "boundscheck": False,
}
DAMAGED = (  # what reading a damaged pickle may raise
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    ValueError,
)
_lock = threading.RLock()


def inline(function):
    """Compile ``function`` as part of the kernels that call it."""
    return numba.njit(**OPTIONS)(function)


class CompiledKernel:
    """A function of a record's address and a worker's number, compiled when its address is first needed."""

    def __init__(self, function, record, seconds):
        self.function = function
        argument = types.int64 if record is None else types.CPointer(numba.from_dtype(record.dtype))
        self.signature = types.int64(argument, types.int64)
        self.seconds = seconds
        self._address = None

    def address(self):
        """Return the address of the machine code."""
        if self._address is None:
            with _lock:
                if self._address is None:  # no other thread has compiled it in the meantime
                    self._compiled = compile_once(self._compile, self.function.__name__, self.seconds)
                    self._address = self._compiled.address
        return self._address

    def _compile(self, cache):
        options = {name: value for name, value in OPTIONS.items() if name != "nogil"}  # cfunc has no nogil
        return numba.cfunc(self.signature, cache=cache, **options)(self.function)


def kernel(record, seconds):
    """Make a ``CompiledKernel`` of the decorated function; compiling it takes about ``seconds``.

    ``record`` is its ``Layout``; None: the function takes an address. With 0 seconds nothing is announced.
    """
    return lambda function: CompiledKernel(function, record, seconds)


def compile_once(make, name, seconds):
    """Return ``make(cache=True)``, which loads compiled code or compiles and caches it; announce compiling.

    Where nothing can be cached, return ``make(cache=False)``, with a warning.
    """
    with _lock, event.install_listener("numba:run_pass", _Announcement(name, seconds)) as announcement:
        try:
            try:
                folder = cache_folder()
                announcement.when = "in every process" if is_temporary(folder) else "once"
                return _load_or_compile(make, folder)
            except OSError as error:  # a full disk, or no folder at all
                _warn_that_nothing_is_cached(error.strerror or str(error))
            announcement.when = "in every process"
            return make(cache=False)
        finally:
            announcement.finish()


@functools.cache
def _warn_that_nothing_is_cached(reason):
    warnings.warn(
        f"compiled kernels cannot be cached and are compiled in every process ({reason}); {CACHE_HINT}",
        RuntimeWarning,
        stacklevel=2,
    )


def _load_or_compile(make, folder):
    with _cache_in(folder):
        try:
            return make(cache=True)
        except DAMAGED:
            shutil.rmtree(folder)  # it is compiled again
            return make(cache=True)


@contextlib.contextmanager
def _cache_in(folder):
    """Within this block Numba caches what it compiles in ``folder``."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


class _Announcement(event.Listener):
    """Prints to standard error that compiling begins, at its first pass, and that it has ended."""

    def __init__(self, name, seconds):
        self.name, self.seconds, self.start, self.when = name, seconds, None, "once"

    def on_start(self, _):
        if self.start is None and self.seconds:
            self.start = time.perf_counter()
            self.say(f"compiling {self.name}, {self.when}, about {self.seconds} s …")

    def on_end(self, _):
        pass

    def finish(self):
        if self.start is not None:
            self.say(f"compiled {self.name} in {time.perf_counter() - self.start:.1f} s")

    @staticmethod
    def say(text):
        print(f"minitransformer: {text}", file=sys.stderr, flush=True)


def cache_folder():
    """Return the folder for compiled code: one per version of the sources, libraries and processor.

    It is in NUMBA_CACHE_DIR if that can be written to, otherwise in the cache folder of the library. Raises
    OSError where nothing can be written.
    """
    name = f"kernels-{_digest()}"
    named = Path(numba.config.CACHE_DIR) / name if numba.config.CACHE_DIR else None
    return named if named is not None and is_writable(named) else make_cache_folder(name)


def sources():
    """Return every file that compiled code may depend on: the kernels and all that they import."""
    package = Path(minitransformer.__file__).parent
    folders = Path(__file__).parent, package / "functional", package / "system", package
    return [path for folder in folders for path in sorted(folder.glob("*.py"))]


@functools.cache  # a later edit does not change what this process has loaded
def _digest():
    parts = [source.read_bytes() for source in sources()]
    codegen = numba.core.registry.cpu_target.target_context.codegen()
    parts.append(repr((numba.__version__, llvmlite.__version__, codegen.magic_tuple())).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
