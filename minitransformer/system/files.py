"""Files and folders that are written atomically, and JSON."""

import contextlib
import json
import os
import re
import secrets
import shutil
from pathlib import Path

from minitransformer.errors import InputError

SUFFIX = ".part"  # of a temporary file or folder
TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{8}\.part")
LARGEST_JSON = 2**28  # bytes


@contextlib.contextmanager
def write_atomically(path):
    """Yield a temporary path beside ``path``; when the block ends without an error, it replaces ``path``.

    If the block fails (a full disk, Ctrl-C, a crash), ``path`` keeps its old content.
    """
    path = Path(path)
    temporary = temporary_path(path)
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
def write_folder_atomically(path):
    """Yield a temporary folder beside ``path``; when the block ends without an error, it replaces ``path``.

    A folder that existed before is removed once the new one has been synchronised to disk.
    """
    path = Path(path)
    temporary = temporary_path(path)
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


def remove_folder(path):
    """Remove the folder ``path``, which is renamed first: an interrupted removal leaves no partial folder."""
    temporary = temporary_path(path)
    path.rename(temporary)
    shutil.rmtree(temporary, ignore_errors=True)  # files still open are left to remove_temporary_files


def remove_temporary_files(folder):
    """Remove the temporary files and folders that killed processes have left in ``folder``."""
    for path in Path(folder).glob(f".*{SUFFIX}"):
        if not TEMPORARY_NAME.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def temporary_path(path):
    """Return a new hidden name beside ``path``, which ``remove_temporary_files`` recognises."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{SUFFIX}")


def check_writable(path):
    """Raise InputError unless a file can be written to ``path``: its folder exists and is writable."""
    path = Path(path)
    temporary = temporary_path(path)
    try:
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    if path.is_dir():
        raise InputError(f"{path} cannot be written: it is a folder")


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


def write_json(path, value):
    """Write ``value`` to ``path`` as indented JSON, atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _synchronise(path):
    """Flush ``path`` to disk with fsync; for folders, only where the system supports it."""
    if path.is_dir():
        with contextlib.suppress(OSError):
            _fsync(path, os.O_RDONLY)
    else:
        _fsync(path, os.O_RDWR)


def _fsync(path, flags):
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
