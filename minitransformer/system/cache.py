"""The cache folder: where files are kept that can be recreated, such as compiled kernels and tokens."""

import atexit
import functools
import os
import shutil
import tempfile
import warnings
from pathlib import Path

from minitransformer.system.files import temporary_path

CACHE_HINT = "name a folder with room in the environment variable MINITRANSFORMER_CACHE"
_temporary = []  # folders that are removed when this process ends


def make_cache_folder(name=""):
    """Make the folder ``name`` of the cache if it does not exist, and return it; it is writable.

    The cache is ``MINITRANSFORMER_CACHE``, by default ``minitransformer`` in the user's cache folder. If that
    is not writable, or the user has no home folder, a temporary folder takes its place: the same for all of
    this process, removed when it ends, and announced by a warning. Raises OSError if there is none either.
    """
    wanted = _find_cache()
    if wanted is not None and is_writable(wanted / name):
        return wanted / name
    folder = _make_temporary_cache(wanted) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def is_temporary(folder):
    """Return True if ``folder`` is in the cache that is removed when this process ends."""
    return any(each in (folder, *folder.parents) for each in _temporary)


def is_writable(folder):
    """Return True if files can be written to ``folder``, which is made if it does not exist."""
    probe = temporary_path(folder / "probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError:
        return False
    return True


def has_home():
    """Return True if the user has a home folder: by HOME, or by an entry in the system's list of users."""
    try:
        return bool(Path.home())
    except RuntimeError:
        return False


def _find_cache():
    """Return the cache folder that the environment or the user's home decides, or None without a home."""
    chosen, caches = (os.environ.get(name) for name in ("MINITRANSFORMER_CACHE", "XDG_CACHE_HOME"))
    if chosen:
        return Path(chosen)
    if caches or has_home():
        return (Path(caches) if caches else Path.home() / ".cache") / "minitransformer"
    return None


@functools.cache
def _make_temporary_cache(wanted):
    reason = "there is no home folder" if wanted is None else f"{wanted} cannot be written to"
    try:
        folder = Path(tempfile.mkdtemp(prefix="minitransformer-"))
    except OSError as error:
        raise OSError(
            f"{reason}, and no temporary folder can be made ({error.strerror or error}); {CACHE_HINT}"
        ) from None
    _temporary.append(folder)
    atexit.register(_remove, folder, os.getpid())
    warnings.warn(
        f"{reason}; the cache is {folder}, which is removed when this process ends; {CACHE_HINT}",
        RuntimeWarning,
        stacklevel=3,
    )
    return folder


def _remove(folder, process):
    if os.getpid() == process:  # not in a forked child
        shutil.rmtree(folder, ignore_errors=True)
