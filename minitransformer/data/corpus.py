"""Corpora: the text that a model learns from, and the text that it is judged by."""

import hashlib
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from minitransformer.data.tasks import TASKS
from minitransformer.data.text import Text, sha256, split_text, text_of
from minitransformer.data.text_files import find_texts, is_pattern
from minitransformer.errors import InputError
from minitransformer.system.files import read_json

CORPUS = "corpus.json"  # the record, in the output folder
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
HELD_OUT = 20  # one file in so many is for validation
TRAIN_SHARE = 0.9


@dataclass(frozen=True)
class Corpus:
    """``Text`` to train on and to validate with, and ``source``: where it came from, for the record."""

    train: Text
    validation: Text
    source: dict


def python_corpus():
    """Return the source of this Python's standard library, its tests left out.

    Only files of plain ASCII are taken, which are nearly all; one in twenty, chosen by a hash of its path
    and so the same on every machine, is held out for validation.
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
            part = "validation" if int.from_bytes(digest[:8]) % HELD_OUT == 0 else "train"
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
    """Return the text of the files, folders and patterns ``paths``, one document a file, each file once.

    The first nine tenths of its characters are to train on, the rest is for validation.
    """
    found = [find_texts(path) for path in paths]
    files = {file.resolve(): file for texts, _ in found for file in texts}
    text = text_of(list(files.values()))
    characters = sum(map(len, text.pieces()))
    train, validation = split_text(text, int(characters * TRAIN_SHARE))
    places = [str(Path(path).resolve()) for path in paths]
    source = {"corpus": "text", "paths": places, "sha256": sha256(text)}
    left_out = sorted({str(part.resolve()) for _, parts in found for part in parts})
    return Corpus(train, validation, source | ({"left_out": left_out} if left_out else {}))


def corpus_of(recipe_name, kind, data=()):
    """Return the corpus ``kind`` of a recipe, or that of the texts ``data`` if any are given."""
    if data:
        return text_corpus(*data)
    if kind == "python":
        return python_corpus()
    raise InputError(f"the recipe {recipe_name!r} learns from a text of yours: give it with --data PATH")


def judged(folder, data=()):
    """Return what to judge the model in ``folder`` by, a ``Text`` or ``Sequences``, and which part that is.

    Without ``data``, or if ``data`` is the very text that the model was trained on, the ``"validation"``
    part, which it never saw; of any other text the ``"whole"``.
    """
    path = Path(folder) / CORPUS
    if not path.exists():
        if not data:
            raise InputError(f"{folder} does not say what it was trained on; give a text file with --data")
        return _whole(text_corpus(*data)), "whole"
    source = read_json(path)
    kind, digest, paths = source.get("corpus"), source.get("sha256"), source.get("paths")
    named = isinstance(paths, list) and paths and all(map(_is_text, paths))
    if kind not in ("python", *TASKS) and not (kind == "text" and named):
        raise InputError(f"{path} is damaged: it does not say what the model was trained on")
    if kind in TASKS:
        if data:
            raise InputError(f"{folder} was trained on the task {kind!r}, which makes its own examples")
        return TASKS[kind]().validation, "validation"
    if data:
        corpus = text_corpus(*data)
        if corpus.source["sha256"] == digest:
            return corpus.validation, "validation"
        return _whole(corpus), "whole"
    if kind == "text" and not all(Path(part).exists() for part in paths if not is_pattern(part)):
        raise InputError(f"the text that {folder} was trained on is gone; say where it is with --data")
    corpus = python_corpus() if kind == "python" else text_corpus(*paths)
    if corpus.source["sha256"] != digest:
        raise InputError(
            f"the text that {folder} was trained on has changed since, so that its validation part "
            "is not known; give a text file with --data"
        )
    return corpus.validation, "validation"


def _whole(corpus):
    """Return both parts of ``corpus`` as one text, the document between them whole again."""
    spans = list(corpus.train.spans)
    for path, start, stop in corpus.validation.spans:
        continues = spans and (spans[-1][0], spans[-1][2]) == (path, start)
        spans.append((path, spans.pop()[1] if continues else start, stop))
    return Text(spans)


def _is_text(value):
    return isinstance(value, str)
