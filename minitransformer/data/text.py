"""Text that lies in files and is read piece by piece: a corpus may be larger than memory."""

import codecs
import glob
import hashlib
from pathlib import Path

from minitransformer.errors import InputError

PIECE = 2**20  # bytes read at a time


class Text:
    """The text of ``spans``, each (path, first byte, byte after the last) and a document of its own."""

    def __init__(self, spans):
        self.spans = [(Path(path), start, stop) for path, start, stop in spans]

    @property
    def byte_count(self):
        """The UTF-8 bytes of all documents together."""
        return sum(stop - start for _, start, stop in self.spans)

    def documents(self):
        """Yield each document as an iterator over its pieces, strings of about a mebibyte."""
        for span in self.spans:
            yield _decoded(*span)

    def pieces(self):
        """Yield the pieces of all documents, one after the other."""
        for document in self.documents():
            yield from document

    def read(self, characters=None):
        """Return the whole text, or about its first ``characters``, as one string."""
        parts, length = [], 0
        for piece in self.pieces():
            parts.append(piece)
            length += len(piece)
            if characters is not None and length >= characters:
                break
        return "".join(parts)[:characters]


def sha256(*texts):
    """Return the SHA-256 of ``texts``, one after the other, as UTF-8."""
    digest = hashlib.sha256()
    for text in texts:
        for piece in text.pieces():
            digest.update(piece.encode("utf-8"))
    return digest.hexdigest()


def text_files(path):
    """Return the sorted files that ``path`` names: a file, a folder (all in it), or a pattern (``*``)."""
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file, path))
        if not files:
            raise InputError(f"the folder {path} holds no files; expected text files")
        return files
    if path.exists():
        return [path]
    matches = {Path(match) for match in glob.glob(str(path), recursive=True)}
    files = sorted(file for file in matches if file.is_file())
    if not files:
        raise InputError(f"no file matches {path}" if is_pattern(path) else f"there is no file {path}")
    return files


def is_pattern(path):
    """Return True if ``path`` may name several files."""
    return any(sign in str(path) for sign in "*?[")


def text_of(files):
    """Return the text of ``files``; raise InputError if all are empty. Reading it finds what is not UTF-8."""
    sizes = [(file, file.stat().st_size) for file in files]
    spans = [(file, 0, size) for file, size in sizes if size]  # an empty file among others harms nobody
    if not spans:
        raise InputError(f"{files[0]} is empty; expected text")
    return Text(spans)


def split_text(text, characters):
    """Return the first ``characters`` of ``text``, and the rest."""
    first, rest, remaining = [], [], characters
    for path, start, stop in text.spans:
        place = start
        for piece in _decoded(path, start, stop) if remaining else ():
            taken = piece[:remaining]
            remaining -= len(taken)
            place += len(taken.encode("utf-8"))
            if not remaining:
                break
        if place > start:
            first.append((path, start, place))
        if place < stop:
            rest.append((path, place, stop))
    return Text(first), Text(rest)


def _decoded(path, start, stop):
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        file.seek(start)
        place = start
        while place < stop:
            block = file.read(min(PIECE, stop - place))
            if not block:
                raise InputError(f"{path} has become shorter while it was read")
            try:
                piece = decoder.decode(block, final=place + len(block) == stop)
            except UnicodeDecodeError as error:
                offset = place - len(error.object) + len(block) + error.start
                raise InputError(
                    f"{path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset {offset:,} "
                    "can't be decoded; if it is text at all, convert it, for example with "
                    "iconv -f windows-1252 -t utf-8; among other files, name the texts by a pattern ('*.txt')"
                ) from None
            place += len(block)
            if piece:
                yield piece


def _hidden(file, folder):
    return any(part.startswith(".") for part in file.relative_to(folder).parts)
