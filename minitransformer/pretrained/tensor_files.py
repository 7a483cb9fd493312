"""Named arrays in a safetensors file, with the SHA-256 of their content."""

import contextlib
import hashlib
import json
import math
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minitransformer.errors import InputError
from minitransformer.system.files import write_atomically

# safetensors' names of types, and NumPy's (bfloat16 for those that have installed it)
TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
STORED = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
LENGTH = 8  # bytes at the beginning of a file: the length of its header


def write_tensors(path, tensors):
    """Write ``{name: array}`` to ``path``, atomically."""
    path = Path(path)
    types = {name: tensor.dtype.name for name, tensor in tensors.items()}
    with write_atomically(path) as temporary:
        try:
            save_file(
                tensors, temporary, metadata={"format": "pt", "sha256": _compute_digest(tensors, types)}
            )
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from None


def read_tensors(path, check):
    """Return ``{name: array}`` of the safetensors file ``path``; raise InputError if it is damaged.

    ``check`` is called with ``{name: (shape, type)}`` of the header, the type by NumPy's name, and returns
    the names of the tensors to read. It raises InputError for a header that does not fit, before memory of
    the size that the file claims is allocated. If the file has a SHA-256 of its content, that is compared.
    bfloat16, which NumPy does not have, is returned as float32, exactly.
    """
    path = Path(path)
    with _reading(path), safe_open(path, framework="numpy") as file:
        header = _parse_header(file)
        stored = _read_stored(path, check(header))
        recorded = (file.metadata() or {}).get("sha256")
    types = {name: header[name][1] for name in stored}
    if recorded and len(stored) == len(header) and recorded != _compute_digest(stored, types):
        raise InputError(f"{path} is damaged: its content does not match the SHA-256 it was saved with")
    return {name: _widen(stored.pop(name)) for name in list(stored)}


def read_header(path):
    """Return ``{name: (shape, type)}`` of the safetensors file ``path``, the type by NumPy's name."""
    path = Path(path)
    with _reading(path), safe_open(path, framework="numpy") as file:
        return _parse_header(file)


def check_tensor(path, name, header, shape):
    """Raise InputError unless ``header`` has the tensor ``name``, of ``shape`` and a type of float."""
    if name not in header:
        raise InputError(f"{path}: the tensor {name} is missing")
    found, dtype = header[name]
    if found != tuple(shape):
        raise InputError(f"{path}: {name} has shape {found}; expected {tuple(shape)}")
    if dtype not in TYPES.values():
        raise InputError(f"{path}: {name} has type {dtype}; expected one of {', '.join(TYPES.values())}")


@contextlib.contextmanager
def _reading(path):
    """Turn errors in the block into an InputError about ``path``."""
    if not path.is_file():
        raise InputError(f"{path} is missing")
    try:
        yield
    except InputError:
        raise
    except (SafetensorError, ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"{path} is damaged or no safetensors file: {error}") from None


def _parse_header(file):
    parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    return {
        name: (tuple(part.get_shape()), TYPES.get(part.get_dtype(), part.get_dtype()))
        for name, part in parts.items()
    }


def _read_stored(path, names):
    """Return the tensors ``names`` of ``path``, whose header is valid, in their stored types."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH), "little")
        header = json.loads(file.read(length))
    stored = {}
    for name in names:
        dtype, shape = STORED[header[name]["dtype"]], header[name]["shape"]
        start = LENGTH + length + header[name]["data_offsets"][0]
        stored[name] = np.fromfile(path, dtype, math.prod(shape), offset=start).reshape(shape)
    return stored


def _widen(tensor):
    """Return ``tensor``, bits of bfloat16 as float32: they are the upper half of its bits."""
    return (tensor.astype(np.uint32) << 16).view(np.float32) if tensor.dtype.kind == "u" else tensor


def _compute_digest(tensors, types):
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {types[name]} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]))
    return digest.hexdigest()
