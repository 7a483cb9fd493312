"""Compiling with Numba: with which liberties, when, kept where, and what a person sees of it.

A kernel is compiled when it is first called, which takes seconds, and kept on disk for the next process. The
folder's name holds a hash of all that the code is made from, because Numba's own cache notices an edit only
in the file of the function itself, not in the files that this one calls.
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

from minitransformer.system import files

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


def inlined(function):
    """Compile ``function`` as a part of the kernels that call it."""
    return numba.njit(**OPTIONS)(function)


class CompiledKernel:
    """A function of a record's address and the number of a worker, compiled when first asked for."""

    def __init__(self, function, record, seconds):
        self.function = function
        self.signature = types.int64(types.CPointer(numba.from_dtype(record)), types.int64)
        self.seconds = seconds
        self._address = None

    def address(self):
        """Return the address of the machine code."""
        if self._address is None:
            with _lock:
                if self._address is None:  # no other thread has compiled it meanwhile
                    self._compiled = compile_once(self._compile, self.function.__name__, self.seconds)
                    self._address = self._compiled.address
        return self._address

    def _compile(self, cache):
        options = {name: value for name, value in OPTIONS.items() if name != "nogil"}  # no word for callbacks
        return numba.cfunc(self.signature, cache=cache, **options)(self.function)


def kernel(record, seconds):
    """Make a ``CompiledKernel`` of the decorated function; compiling it takes about ``seconds``."""
    return lambda function: CompiledKernel(function, record, seconds)


def compile_once(make, name, seconds):
    """Return ``make(cache=True)``, which finds compiled code or keeps what it compiles; say if it compiles.

    Where nothing can be kept, return ``make(cache=False)``, with a warning.
    """
    with _lock, event.install_listener("numba:run_pass", _Announcement(name, seconds)) as announcement:
        try:
            try:
                folder = cache_folder()
                announcement.often = "anew" if files.is_temporary(folder) else "once"
                return _found_or_kept(make, folder)
            except OSError as error:  # a full disk, or no folder at all
                _warn_that_nothing_is_kept(error.strerror or str(error))
            announcement.often = "anew"
            return make(cache=False)
        finally:
            announcement.finish()


@functools.cache
def _warn_that_nothing_is_kept(reason):
    warnings.warn(
        f"compiled kernels cannot be kept and are compiled anew in every process ({reason}); "
        f"{files.NAME_A_FOLDER}",
        RuntimeWarning,
        stacklevel=2,
    )


def _found_or_kept(make, folder):
    with _kept_in(folder):
        try:
            return make(cache=True)
        except DAMAGED:
            shutil.rmtree(folder)  # it can be made again
            return make(cache=True)


@contextlib.contextmanager
def _kept_in(folder):
    """Within this block Numba keeps what it compiles in ``folder``."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


class _Announcement(event.Listener):
    """Says on standard error that compiling began, at its first pass, and that it ended."""

    def __init__(self, name, seconds):
        self.name, self.seconds, self.start, self.often = name, seconds, None, "once"

    def on_start(self, _):
        if self.start is None:
            self.start = time.perf_counter()
            self.say(f"compiling {self.name}, {self.often}, about {self.seconds} s …")

    def on_end(self, _):
        pass

    def finish(self):
        if self.start is not None:
            self.say(f"compiled {self.name} in {time.perf_counter() - self.start:.1f} s")

    @staticmethod
    def say(text):
        print(f"minitransformer: {text}", file=sys.stderr, flush=True)


def cache_folder():
    """Return the folder for compiled code: one for every state of the sources, libraries and processor.

    It lies in NUMBA_CACHE_DIR if that can be written to, or else where everything lies that can be made
    again. Raises OSError where nothing can be written.
    """
    name = f"kernels-{_digest()}"
    named = Path(numba.config.CACHE_DIR) / name if numba.config.CACHE_DIR else None
    return named if named is not None and files.is_writable(named) else files.cache_folder(name)


def sources():
    """Return every file that compiled code may depend on: the kernels and all that they import."""
    package = Path(files.__file__).parents[1]
    folders = Path(__file__).parent, package / "functional"
    modules = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    return modules + [package / name for name in ("arrays.py", "errors.py", "system/files.py")]


@functools.cache  # a later edit is not what this process has loaded
def _digest():
    parts = [source.read_bytes() for source in sources()]
    codegen = numba.core.registry.cpu_target.target_context.codegen()
    parts.append(repr((numba.__version__, llvmlite.__version__, codegen.magic_tuple())).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
