"""Corpora: a text to train on and a text to validate with."""

import hashlib
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from minitransformer.data.text import Text, open_text, sha256, split_text
from minitransformer.data.text_files import find_texts
from minitransformer.errors import InputError

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
FILES_PER_VALIDATION_FILE = 20
TRAIN_SHARE = 0.9


@dataclass(frozen=True)
class Corpus:
    """A ``Text`` to train on, one to validate with, and ``source``, a record of where they are from."""

    train: Text
    validation: Text
    source: dict


def python_corpus():
    """Return the source of this Python's standard library, without its tests.

    Only ASCII files are taken, which are nearly all. One file in twenty is for validation, chosen by a hash
    of its path and so the same on every machine.
    """
    root = Path(sysconfig.get_path("stdlib"))
    parts = {"train": [], "validation": []}
    left_out = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if LEFT_OUT & set(relative.parts):
            continue
        name, content = relative.as_posix(), path.read_bytes()
        if not content.isascii():
            left_out.append(name)
        elif content:
            digest = hashlib.sha256(name.encode()).digest()
            part = "validation" if int.from_bytes(digest[:8]) % FILES_PER_VALIDATION_FILE == 0 else "train"
            parts[part].append((path, 0, len(content)))
    if not all(parts.values()):
        raise InputError(f"{root} holds no Python source to learn from; give a text file with --data")
    train, validation = (Text(spans) for spans in parts.values())
    source = {
        "corpus": "python",
        "python": platform.python_version(),
        "sha256": sha256(train, validation),
        "train_files": [path.relative_to(root).as_posix() for path, _, _ in train.spans],
        "validation_files": [path.relative_to(root).as_posix() for path, _, _ in validation.spans],
        "left_out_not_ascii": left_out,
    }
    return Corpus(train, validation, source)


def text_corpus(*paths):
    """Return the text of the files, folders and patterns ``paths``, one document per file, each file once.

    The first nine tenths of its characters are for training, the rest is for validation.
    """
    found = [find_texts(path) for path in paths]
    files = {file.resolve(): file for texts, _ in found for file in texts}
    text = open_text(list(files.values()))
    characters = sum(map(len, text.pieces()))
    train, validation = split_text(text, int(characters * TRAIN_SHARE))
    places = [str(Path(path).resolve()) for path in paths]
    source = {"corpus": "text", "paths": places, "sha256": sha256(text)}
    left_out = sorted({str(part.resolve()) for _, parts in found for part in parts})
    return Corpus(train, validation, source | ({"left_out": left_out} if left_out else {}))


def load_corpus(recipe_name, kind, data=()):
    """Return the corpus ``kind`` of the recipe ``recipe_name``, or of the texts ``data`` if any are given."""
    if data:
        return text_corpus(*data)
    if kind == "python":
        return python_corpus()
    raise InputError(f"the recipe {recipe_name!r} learns from a text of yours: give it with --data PATH")
