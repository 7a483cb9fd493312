"""Named arrays in a safetensors file, with the SHA-256 of their content."""

import hashlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minitransformer.errors import InputError
from minitransformer.files import replacing

# safetensors' names of types, and NumPy's
TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def write_tensors(path, tensors):
    """Write ``{name: array}`` to ``path``, atomically."""
    path = Path(path)
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt", "sha256": _digest(tensors)})
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from None


def read_tensors(path, check):
    """Return ``{name: array}`` of the safetensors file ``path``; raise InputError if it is damaged.

    ``check`` is called with ``{name: (shape, type)}`` of the header, the type by NumPy's name, and returns
    the names of the tensors to read; what it does not like it refuses with an InputError, before anything of
    the size that the file claims takes memory. A content that was recorded is compared with the record.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is missing")
    try:
        with safe_open(path, framework="numpy") as file:
            header = {name: _shape_and_type(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in check(header)}
            recorded = (file.metadata() or {}).get("sha256")
    except InputError:
        raise
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        raise InputError(f"{path} is damaged or no safetensors file: {error}") from None
    if recorded and len(tensors) == len(header) and recorded != _digest(tensors):
        raise InputError(f"{path} is damaged: its content does not match the SHA-256 it was saved with")
    return tensors


def check_tensor(path, name, header, shape):
    """Raise InputError unless ``header`` has the tensor ``name``, of ``shape`` and a type of float."""
    if name not in header:
        raise InputError(f"{path}: the tensor {name} is missing")
    found, dtype = header[name]
    if found != tuple(shape):
        raise InputError(f"{path}: {name} has shape {found}; expected {tuple(shape)}")
    if dtype not in TYPES.values():
        raise InputError(f"{path}: {name} has type {dtype}; expected one of {', '.join(TYPES.values())}")


def _shape_and_type(part):
    name = part.get_dtype()
    return tuple(part.get_shape()), TYPES.get(name, name)


def _digest(tensors):
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]))
    return digest.hexdigest()
