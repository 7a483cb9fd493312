"""Processes that tests start: whatever becomes of the test, they end with it, and so do their children."""

import contextlib
import os
import signal
import subprocess

import pytest


@contextlib.contextmanager
def running(command, **settings):
    """Start ``command`` (``settings`` are those of ``subprocess.Popen``) for this block; kill what is left.

    It is the first of a group of its own, all of which is killed: what it forked or started, too.
    """
    group = {"start_new_session": True} if os.name == "posix" else {}
    with subprocess.Popen(command, **settings, **group) as process:
        try:
            yield process
        finally:
            if group:
                with contextlib.suppress(ProcessLookupError):  # all of them have ended
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()


@contextlib.contextmanager
def usual_signals():
    """Within this block signals are what they are in a program started from a terminal.

    A script's ``&`` and ``nohup`` start programs that ignore SIGINT, and what those start ignores it too.
    Here Ctrl-C and SIGTERM raise KeyboardInterrupt, so that whatever is running is ended, and a new process
    finds both as a terminal would have them. SIGHUP is left alone: whoever ignores it wants the program to
    outlive the terminal.
    """
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.default_int_handler}
    earlier = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def room_for(size):
    """Within this block no file grows beyond ``size`` bytes: it stands in for a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
