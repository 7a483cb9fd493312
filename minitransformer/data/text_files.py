"""Which files are text: those of a folder or a pattern, but not what this program has written there."""

import functools
import glob
import os
from pathlib import Path

from minitransformer.errors import InputError
from minitransformer.system.file_names import CONFIG, METRICS, RUN, WEIGHTS, WRITTEN
from minitransformer.system.files import TEMPORARY_NAME

SIGNS = "*?["  # of a pattern
PICTURES = {".png", ".pdf", ".jpg", ".webp"}  # none of which is UTF-8; an .svg is


def find_texts(path):
    """Return the sorted files that ``path`` names, and what was left out because programs write it.

    ``path`` is a file, which is always taken, a folder (all in it), or a pattern (``*``). Left out are
    pictures, and folders in which a model or a run lies. A folder with a run that is named itself may hold
    texts beside it: there the files are left out that a run writes.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        return [path], []
    is_output = functools.cache(_is_output)
    top = path if path.is_dir() else _before_the_signs(path)

    def written(file):
        """Return the outermost folder of a program that ``file`` lies in, or ``file`` if it is one's own."""
        *folders, _ = (top / part for part in file.relative_to(top).parents)
        own = (
            TEMPORARY_NAME.fullmatch(file.name)
            or file.suffix.lower() in PICTURES
            or (not folders and file.name in WRITTEN and is_output(top))
        )
        return next(filter(is_output, reversed(folders)), file if own else None)

    sources = {file: written(file) for file in _named(path)}
    texts = [file for file, output in sources.items() if output is None]
    if not texts:
        raise InputError(_nothing_found(path, bool(sources)))
    return texts, sorted(set(sources.values()) - {None})


def _nothing_found(path, written):
    apart = ", apart from models, runs and pictures" if written else ""
    if path.is_dir():
        return f"the folder {path} holds no files{apart}; expected text files"
    return f"no file matches {path}{apart}" if is_pattern(path) else f"there is no file {path}"


def is_pattern(path):
    """Return True if ``path`` may name several files."""
    return any(sign in str(path) for sign in SIGNS)


def _named(path):
    """Return the sorted files in a folder, hidden ones left out, or those that match a pattern."""
    if not path.is_dir():
        matches = {Path(match) for match in glob.glob(str(path), recursive=True)}
        return sorted(file for file in matches if file.is_file())
    files = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(file for file in files if file.is_file())


def _before_the_signs(pattern):
    """Return the folder in which everything lies that matches ``pattern``."""
    return next(folder for folder in pattern.parents if not is_pattern(folder))


def _is_output(folder):
    """Return True if a model lies in ``folder``, or a run that has none yet."""
    if (folder / WEIGHTS).exists():
        return True
    begun = any((folder / name).exists() for name in (RUN, CONFIG))
    return (folder / METRICS).exists() and (begun or any(folder.glob("checkpoint-*")))
