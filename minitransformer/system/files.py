"""Files and folders that are either whole or not there, and the folder for what can be made again."""

import atexit
import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import tempfile
import warnings
from pathlib import Path

from minitransformer.errors import InputError

PART = ".part"  # the ending of what is being written
OF_A_WRITER = re.compile(r"\..+\.[0-9a-f]{8}\.part")
LARGEST_JSON = 2**28  # bytes
NAME_A_FOLDER = "name a folder with room in the environment variable MINITRANSFORMER_CACHE"
_temporary = []  # the folders that go when this process ends


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside ``path``; when the block ends well, it takes the place of ``path``.

    Whatever happens within the block (a full disk, Ctrl-C, a crash), ``path`` keeps its old content.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers make private files
        _synchronise(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path):
    """Yield a temporary folder beside ``path``; when the block ends well, it takes the place of ``path``.

    A folder that stood there before is removed, once the new one is complete on the disk.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            _synchronise(file)
        _synchronise(temporary)
        if path.exists():
            remove_folder(path)
        temporary.rename(path)
        _synchronise(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def new_folder(wanted):
    """Make and yield ``wanted``, or the first of ``wanted-2``, ``wanted-3``, … that nobody has made.

    Made, it is this process's own, however many start at once. If nothing was written to it when the block
    ends, it is removed again, and so is its parent if that was made for it.
    """
    missing = not wanted.parent.exists()
    folder = _made(wanted)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # something lies in it
            folder.rmdir()
            if missing:
                wanted.parent.rmdir()


def _made(wanted):
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


def remove_folder(path):
    """Remove the folder ``path``; stopped half way, it leaves nothing under that name."""
    going = _beside(path)
    path.rename(going)
    shutil.rmtree(going, ignore_errors=True)  # what somebody still holds open goes with the next cleaning


def remove_parts(folder):
    """Remove what writers that were killed have left in ``folder``."""
    for left in Path(folder).glob(f".*{PART}"):
        if not OF_A_WRITER.fullmatch(left.name):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _beside(path):
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")


def _synchronise(path):
    """Wait until ``path`` is on the disk; folders are only waited for where the system can."""
    if path.is_dir():
        with contextlib.suppress(OSError):
            _wait_for(path, os.O_RDONLY)
    else:
        _wait_for(path, os.O_RDWR)


def _wait_for(path, flags):
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(folder, wait=False):
    """Hold ``folder`` for this process; if another one does, ``wait`` for it or raise InputError.

    The system lets go when the process ends, however it ends. Where it has no such locks (Windows, some
    network disks) nothing is held.
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


def read_json(path):
    """Return the JSON object in the file ``path``; raise InputError if there is none."""
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes; expected less than {LARGEST_JSON:,}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; expected a JSON file") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def check_writable(path):
    """Raise InputError unless a file can be written to ``path``: its folder is there and takes one."""
    path = Path(path)
    temporary = _beside(path)
    try:
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    if path.is_dir():
        raise InputError(f"{path} cannot be written: it is a folder")


def write_json(path, value):
    """Write ``value`` to ``path`` as indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def cache_folder(part=""):
    """Return a folder, which is there and can be written to, for what can be made again.

    It is ``part`` of ``MINITRANSFORMER_CACHE``, or else of ``minitransformer`` in the user's cache. Where
    that can't be written to, or the user has no home, it is part of a temporary folder, the same for all of
    this process and removed when that ends, and a warning says so. Raises OSError where there is none either.
    """
    wanted = _wanted_cache()
    if wanted is not None and is_writable(wanted / part):
        return wanted / part
    folder = _temporary_cache(wanted) / part
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def is_temporary(folder):
    """Return True if ``folder`` lies in the cache that is removed when this process ends."""
    return any(each in (folder, *folder.parents) for each in _temporary)


def is_writable(folder):
    """Return True if ``folder`` is there, or can be made, and takes a file."""
    probe = folder / f".probe.{secrets.token_hex(4)}{PART}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError:
        return False
    return True


def _wanted_cache():
    """Return the folder that the settings and the user's home name, or None where there is no home."""
    chosen, caches = (os.environ.get(name) for name in ("MINITRANSFORMER_CACHE", "XDG_CACHE_HOME"))
    if chosen:
        return Path(chosen)
    if caches or has_home():
        return (Path(caches) if caches else Path.home() / ".cache") / "minitransformer"
    return None


def has_home():
    """Return True if the user has a home folder: by HOME, or by an entry in the system's list of users."""
    try:
        return bool(Path.home())
    except RuntimeError:
        return False


@functools.cache
def _temporary_cache(wanted):
    reason = "there is no home folder" if wanted is None else f"{wanted} cannot be written to"
    try:
        folder = Path(tempfile.mkdtemp(prefix="minitransformer-"))
    except OSError as error:
        raise OSError(
            f"{reason}, and neither is there a temporary one ({error.strerror or error}); {NAME_A_FOLDER}"
        ) from None
    _temporary.append(folder)
    atexit.register(_remove, folder, os.getpid())
    warnings.warn(
        f"{reason}; what can be used again is kept in {folder} until this process ends; {NAME_A_FOLDER}",
        RuntimeWarning,
        stacklevel=3,
    )
    return folder


def _remove(folder, process):
    if os.getpid() == process:  # not a fork of it
        shutil.rmtree(folder, ignore_errors=True)
