"""Token files: the token ids of a text in a file, written once and then mapped into memory."""

import contextlib
import hashlib
import io
import warnings

import numpy as np

from minitransformer.data.text import sha256
from minitransformer.data.tokenizer import encode_pieces, id_count, separator_id
from minitransformer.errors import InputError
from minitransformer.system.cache import CACHE_HINT, make_cache_folder
from minitransformer.system.files import remove_temporary_files, write_atomically
from minitransformer.system.folders import lock_folder

FORMAT = 1  # of token files; with another number all are written anew
HEADER = 128  # bytes of a .npy header


def token_file(text, tokenizer, progress=lambda done, total: None):
    """Return the ids of the ``Text`` ``text``, an array mapped from a file in the cache folder.

    The file is named by a hash of the text and the tokenizer: it is written once and found again. Documents
    are separated by the tokenizer's separator, if it has one. ``progress`` is called with the number of bytes
    of text done and their total. Raises OSError if the cache cannot be written.
    """
    identity = f"{FORMAT} {sha256(text)} {_describe_documents(text, tokenizer)} {tokenizer.to_str()}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    path = make_cache_folder("tokens") / f"{name}.npy"
    with contextlib.suppress(InputError):  # damaged or missing: written below
        return open_tokens(path)
    try:
        with lock_folder(path.parent, wait=True):
            remove_temporary_files(path.parent)
            with contextlib.suppress(InputError):  # another process may have written it meanwhile
                return open_tokens(path)
            with write_atomically(path) as temporary:
                write_tokens(temporary, text, tokenizer, progress)
    except OSError as error:
        raise OSError(
            f"cannot write tokens to {path.parent}: {error.strerror or error}; {CACHE_HINT}"
        ) from None
    return open_tokens(path)


def open_tokens(path):
    """Return the token ids in the ``.npy`` file ``path``, mapped into memory."""
    try:
        with warnings.catch_warnings(action="error"):
            tokens = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header can make NumPy raise or warn of anything
        raise InputError(f"{path} is not a file of tokens: {error}") from None
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise InputError(f"{path} holds {tokens.dtype} of shape {tokens.shape}; expected one row of integers")
    return tokens


def write_tokens(path, text, tokenizer, progress=lambda done, total: None):
    """Write the ids of ``text`` to the ``.npy`` file ``path``, with one piece of it in memory at a time."""
    dtype = np.min_scalar_type(max(id_count(tokenizer) - 1, 0))
    separator, count, done = separator_id(tokenizer), 0, 0

    def report(document):
        nonlocal done
        for piece in document:
            yield piece
            done += len(piece.encode("utf-8"))
            progress(done, text.byte_count)

    with open(path, "wb") as file:
        file.write(bytes(HEADER))
        for number, document in enumerate(text.documents()):
            if number and separator is not None:
                file.write(np.array([separator], dtype).tobytes())
                count += 1
            for ids in encode_pieces(tokenizer, report(document)):
                file.write(ids.astype(dtype).tobytes())
                count += len(ids)
        file.seek(0)
        file.write(_make_header(count, dtype))


def _describe_documents(text, tokenizer):
    """Return the lengths of the documents if the tokens depend on them: if there is a separator."""
    return "" if separator_id(tokenizer) is None else [stop - start for _, start, stop in text.spans]


def _make_header(count, dtype):
    buffer = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(buffer, description)
    header = buffer.getvalue()
    if len(header) != HEADER:
        raise RuntimeError(f"NumPy wrote a header of {len(header)} bytes; expected {HEADER}")
    return header
