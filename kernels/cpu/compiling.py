"""Compiling with Numba: with which liberties, when, kept where, and what a person sees of it.

A kernel is compiled when it is first called, which takes seconds, and kept on disk for the next process. The
folder's name holds a hash of all that the code is made from, because Numba's own cache notices an edit only
in the file of the function itself, not in the files that this one calls.
"""

import contextlib
import hashlib
import importlib
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import llvmlite
import numba
from numba import types
from numba.core import event

from minitransformer import files

OPTIONS = {
    "nogil": True,
    "error_model": "numpy",  # no checks for division by zero
    "fastmath": {"contract"},  # a·b + c may round once; infinities stay infinities
    "boundscheck": False,
}
MODULES_WITH_CONSTANTS = "minitransformer.functional.attention", "minitransformer.functional.philox"
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
            with compiling(self.function.__name__, self.seconds) as keep:
                if self._address is None:  # no other thread has compiled it meanwhile
                    self._compiled = numba.cfunc(self.signature, cache=keep, **_for_callbacks())(
                        self.function
                    )
                    self._address = self._compiled.address
        return self._address


def _for_callbacks():
    return {name: value for name, value in OPTIONS.items() if name != "nogil"}


def kernel(record, seconds):
    """Make a ``CompiledKernel`` of the decorated function; compiling it takes about ``seconds``."""
    return lambda function: CompiledKernel(function, record, seconds)


@contextlib.contextmanager
def compiling(name, seconds):
    """Within this block Numba keeps what it compiles in our folder, and says that it is compiling.

    The value is False if nothing can be kept.
    """
    with _lock, event.install_listener("numba:run_pass", _Announcement(name, seconds)) as announcement:
        before = numba.config.CACHE_DIR
        folder = cache_folder()
        keep = is_writable(folder)
        if keep:
            numba.config.CACHE_DIR = str(folder)
        else:
            warnings.warn(
                f"compiled kernels cannot be kept in {folder} and are compiled anew in every process; name a "
                "folder that can be written to in the environment variable MINITRANSFORMER_CACHE",
                RuntimeWarning,
                stacklevel=2,
            )
        try:
            yield keep
        finally:
            numba.config.CACHE_DIR = before
            announcement.finish()


class _Announcement(event.Listener):
    """Says on standard error that compiling began, at its first pass, and that it ended."""

    def __init__(self, name, seconds):
        self.name, self.seconds, self.start = name, seconds, None

    def on_start(self, _):
        if self.start is None:
            self.start = time.perf_counter()
            self.say(f"compiling {self.name}, once, about {self.seconds} s …", end=" ")

    def on_end(self, _):
        pass

    def finish(self):
        if self.start is not None:
            print(f"done in {time.perf_counter() - self.start:.1f} s", file=sys.stderr, flush=True)

    @staticmethod
    def say(text, end):
        print(f"minitransformer: {text}", end=end, file=sys.stderr, flush=True)


def cache_folder():
    """Return the folder for compiled code: one for every state of the sources, libraries and processor.

    It lies in NUMBA_CACHE_DIR, or else where everything lies that can be made again.
    """
    return Path(numba.config.CACHE_DIR or files.cache_folder()) / f"kernels-{_digest()}"


def _digest():
    sources = sorted(Path(__file__).parent.glob("*.py"))
    sources += [Path(importlib.import_module(name).__file__) for name in MODULES_WITH_CONSTANTS]
    parts = [source.read_bytes() for source in sources]
    codegen = numba.core.registry.cpu_target.target_context.codegen()
    parts.append(repr((numba.__version__, llvmlite.__version__, codegen.magic_tuple())).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def is_writable(folder):
    """Return True if ``folder`` is there, or can be made, and takes a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
