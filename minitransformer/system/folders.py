"""Folders that only one process uses at a time: made new, or locked."""

import contextlib
import os

from minitransformer.errors import InputError


@contextlib.contextmanager
def make_new_folder(wanted):
    """Make and yield ``wanted``, or the first of ``wanted-2``, ``wanted-3``, … that does not exist.

    No two processes get the same folder. If it is empty when the block ends, it is removed again, and so is
    its parent if that was made for it.
    """
    missing = not wanted.parent.exists()
    folder = _make(wanted)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()
            if missing:
                wanted.parent.rmdir()


def _make(wanted):
    folder, number = wanted, 1
    while True:
        try:
            wanted.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InputError(f"{wanted.parent} is a file; expected a folder to write to") from None
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")
        except FileNotFoundError:
            pass  # another process has just removed the parent that it had made


@contextlib.contextmanager
def lock_folder(folder, wait=False):
    """Lock ``folder`` for this process during the block; if it is locked, ``wait`` or raise InputError.

    The system releases the lock when the process ends, even if it is killed. Systems without such locks
    (Windows, some network disks) get none.
    """
    try:
        import fcntl  # noqa: PLC0415  not on Windows
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InputError(f"another process is writing to {folder}; wait for it or stop it") from None
        except OSError:
            pass  # no locks here
        yield
    finally:
        os.close(descriptor)
