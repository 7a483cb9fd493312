"""Corpora: the text that a model learns from, and the text that it is judged by."""

import hashlib
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from minitransformer.errors import InputError
from minitransformer.files import read_json

CORPUS = "corpus.json"  # the record, in the output folder
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
HELD_OUT = 20  # one file in so many is for validation
TRAIN_SHARE = 0.9


@dataclass(frozen=True)
class Corpus:
    """Text to train on and text to validate with, and ``source``: where it came from, for the record."""

    train: str
    validation: str
    source: dict


def python_corpus():
    """Return the source of this Python's standard library, its tests left out.

    Only files of plain ASCII are taken, which are nearly all; one in twenty, chosen by a hash of its path
    and so the same on every machine, is held out for validation.
    """
    root = Path(sysconfig.get_path("stdlib"))
    parts = {"train": [], "validation": []}
    files = {"train": [], "validation": []}
    left_out = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if LEFT_OUT & set(relative.parts):
            continue
        content = path.read_bytes()
        if not content.isascii():
            left_out.append(relative.as_posix())
            continue
        name = relative.as_posix()
        digest = hashlib.sha256(name.encode()).digest()
        part = "validation" if int.from_bytes(digest[:8]) % HELD_OUT == 0 else "train"
        parts[part].append(content.decode("ascii"))
        files[part].append(name)
    if not all(parts.values()):
        raise InputError(f"{root} holds no Python source to learn from; give a text file with --data")
    train, validation = "".join(parts["train"]), "".join(parts["validation"])
    source = {
        "corpus": "python",
        "python": platform.python_version(),
        "sha256": sha256(train, validation),
        "train_files": files["train"],
        "validation_files": files["validation"],
        "left_out_not_ascii": left_out,
    }
    return Corpus(train, validation, source)


def text_corpus(path):
    """Return the text file at ``path``: its first nine tenths to train on, the rest for validation."""
    text = read_text(path)
    split = int(len(text) * TRAIN_SHARE)
    source = {"corpus": "text", "path": str(Path(path).resolve()), "sha256": sha256(text)}
    return Corpus(text[:split], text[split:], source)


def judged_text(folder, data=None):
    """Return the text to judge the model in ``folder`` by, and which part of its source that is.

    Never text that the model was trained on: without ``data``, or if ``data`` is the file it was trained on,
    the ``"validation"`` part; of another file the ``"whole"``.
    """
    path = Path(folder) / CORPUS
    if not path.exists():
        if data is None:
            raise InputError(f"{folder} does not say what it was trained on; give a text file with --data")
        return read_text(data), "whole"
    source = read_json(path)
    kind, digest = source.get("corpus"), source.get("sha256")
    if kind not in ("python", "text") or not isinstance(source.get("path", ""), str):
        raise InputError(f"{path} is damaged: it does not say what the model was trained on")
    if data is None and kind == "text" and not Path(source.get("path", "")).is_file():
        raise InputError(f"the text that {folder} was trained on is gone; say where it is with --data")
    if data is None:
        corpus = python_corpus() if kind == "python" else text_corpus(source.get("path", ""))
        if corpus.source["sha256"] != digest:
            raise InputError(
                f"the text that {folder} was trained on has changed since, so that its validation part "
                "is not known; give a text file with --data"
            )
        return corpus.validation, "validation"
    corpus = text_corpus(data)
    if corpus.source["sha256"] == digest:
        return corpus.validation, "validation"
    return corpus.train + corpus.validation, "whole"


def read_text(path):
    """Return the text of the UTF-8 file at ``path``, every byte kept; raise InputError if it can't."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no file {path}")
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a text file")
    content = path.read_bytes()
    if not content:
        raise InputError(f"{path} is empty; expected text")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: byte 0x{content[error.start]:02x} at offset {error.start:,} "
            "can't be decoded; if it is text at all, convert it, for example with "
            "iconv -f windows-1252 -t utf-8"
        ) from None


def sha256(*texts):
    """Return the SHA-256 of ``texts``, one after the other, as UTF-8."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8"))
    return digest.hexdigest()
