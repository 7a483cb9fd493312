"""Text in files, read piece by piece: a corpus may be larger than memory."""

import codecs
import hashlib
import shlex
from pathlib import Path

from minitransformer.errors import InputError

PIECE = 2**20  # bytes read at a time
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins like UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LOW_BYTES = {
    "utf-16le": (0, 1, 0, 1),
    "utf-16be": (1, 0, 1, 0),
    "utf-32le": (0, 1, 1, 1),
    "utf-32be": (1, 1, 1, 0),
}
HEAD, FEWEST_BYTES, LOW, TOLERANCE = 1024, 16, 9, 0.2


class Text:
    """The text of ``spans``, tuples (path, first byte, byte after the last), each one document."""

    def __init__(self, spans):
        self.spans = [(Path(path), start, stop) for path, start, stop in spans]

    @property
    def byte_count(self):
        """The number of UTF-8 bytes of all documents."""
        return sum(stop - start for _, start, stop in self.spans)

    def documents(self):
        """Yield every document as an iterator over its pieces, strings of about a mebibyte."""
        for span in self.spans:
            yield _decode(*span)

    def pieces(self):
        """Yield the pieces of all documents in order."""
        for document in self.documents():
            yield from document

    def read(self, characters=None):
        """Return the text, or its first ``characters``, as one string."""
        parts, length = [], 0
        for piece in self.pieces():
            parts.append(piece)
            length += len(piece)
            if characters is not None and length >= characters:
                break
        return "".join(parts)[:characters]


def sha256(*texts):
    """Return the SHA-256 of the UTF-8 bytes of ``texts`` in order."""
    digest = hashlib.sha256()
    for text in texts:
        for piece in text.pieces():
            digest.update(piece.encode("utf-8"))
    return digest.hexdigest()


def open_text(files):
    """Return the text of ``files`` without byte order marks.

    Raises InputError if all of them are empty, or for UTF-16 and UTF-32. Other files that are not UTF-8 raise
    it when they are read.
    """
    sizes = [(file, file.stat().st_size) for file in files]
    spans = [(file, _find_start(file), size) for file, size in sizes if size]
    spans = [span for span in spans if span[1] < span[2]]  # a byte order mark alone
    if not spans:
        raise InputError(f"{files[0]} is empty; expected text")
    return Text(spans)


def split_text(text, characters):
    """Return the first ``characters`` of ``text`` and the rest of it, two ``Text``."""
    first, rest, remaining = [], [], characters
    for path, start, stop in text.spans:
        place = start
        for piece in _decode(path, start, stop) if remaining else ():
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


def _decode(path, start, stop):
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


def _find_start(path):
    """Return the number of bytes before the text of a file: those of a byte order mark."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    encoding = _detect_wide_encoding(head)
    if encoding is not None:
        name = shlex.quote(str(path))
        raise InputError(
            f"{path} is text in {encoding.upper()}; expected UTF-8. Convert it: "
            f"iconv -f {encoding} -t utf-8 {name} > {name}.utf8"
        )
    return len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0


def _detect_wide_encoding(head):
    """Return the encoding, UTF-16 or UTF-32, of a file that begins with the bytes ``head``, or None.

    Without a byte order mark it is recognised by the places of bytes close to zero: in most scripts the
    higher bytes of a character are, and UTF-8 has none.
    """
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    head = head[: len(head) // 4 * 4]
    if len(head) < FEWEST_BYTES:
        return None
    low = [sum(byte < LOW for byte in head[place::4]) / (len(head) // 4) for place in range(4)]
    for encoding, expected in LOW_BYTES.items():
        if all(abs(share - one) < TOLERANCE for share, one in zip(low, expected, strict=True)):
            return encoding
    return None
