"""Finds the text files of a folder or a pattern, without the files that this program has written there."""

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
    """Return the sorted text files that ``path`` names, and the files and folders that were left out.

    ``path`` is a file, which is always taken, a folder, of which all files are, or a pattern (``*``). Left
    out are pictures and folders that contain a model or a run. If ``path`` itself is such a folder, only the
    files that a run writes are left out.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        return [path], []
    is_output = functools.cache(_is_output)
    top = path if path.is_dir() else _find_fixed_part(path)

    def find_output(file):
        """Return the outermost folder of a model or run that contains ``file``, ``file`` if it is itself
        written by a program, or None."""
        *folders, _ = (top / part for part in file.relative_to(top).parents)
        own = (
            TEMPORARY_NAME.fullmatch(file.name)
            or file.suffix.lower() in PICTURES
            or (not folders and file.name in WRITTEN and is_output(top))
        )
        return next(filter(is_output, reversed(folders)), file if own else None)

    sources = {file: find_output(file) for file in _list_files(path)}
    texts = [file for file, output in sources.items() if output is None]
    if not texts:
        raise InputError(_describe_nothing_found(path, bool(sources)))
    return texts, sorted(set(sources.values()) - {None})


def _describe_nothing_found(path, written):
    apart = ", apart from models, runs and pictures" if written else ""
    if path.is_dir():
        return f"the folder {path} holds no files{apart}; expected text files"
    return f"no file matches {path}{apart}" if is_pattern(path) else f"there is no file {path}"


def is_pattern(path):
    """Return True if ``path`` is a pattern, which may match several files."""
    return any(sign in str(path) for sign in SIGNS)


def _list_files(path):
    """Return the sorted files in a folder, without hidden ones, or those that match a pattern."""
    if not path.is_dir():
        matches = {Path(match) for match in glob.glob(str(path), recursive=True)}
        return sorted(file for file in matches if file.is_file())
    files = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(file for file in files if file.is_file())


def _find_fixed_part(pattern):
    """Return the folder that contains everything that ``pattern`` matches."""
    return next(folder for folder in pattern.parents if not is_pattern(folder))


def _is_output(folder):
    """Return True if ``folder`` contains a model, or a run that has none yet."""
    if (folder / WEIGHTS).exists():
        return True
    begun = any((folder / name).exists() for name in (RUN, CONFIG))
    return (folder / METRICS).exists() and (begun or any(folder.glob("checkpoint-*")))
