"""The weights of a model folder: the files that hold them, and each tensor under one name.

Other libraries write the same weights in several files, with the prefixes of wrappers, with masks, or with a
tied tensor under its other name. Here they all get the names of the layout.
"""

import re
from pathlib import Path

from minitransformer.errors import InputError
from minitransformer.pretrained.tensor_files import read_header, read_tensors
from minitransformer.system.file_names import WEIGHTS
from minitransformer.system.files import read_json

INDEX = f"{WEIGHTS}.index.json"
WRAPPERS = ("_orig_mod.", "module.")  # the prefixes of torch.compile and of DDP

CONVERT = "from transformers import AutoModelForCausalLM as M; M.from_pretrained({}{}).save_pretrained({})"
OTHERS = {  # file: its description, and the argument with which transformers reads it
    "pytorch_model*.bin*": ("in PyTorch's format, which can run any program and is not opened here", ""),
    "tf_model.h5": ("for TensorFlow; transformers before version 5 reads it", ", from_tf=True"),
    "flax_model.msgpack": ("for Flax; transformers before version 5 reads it", ", from_flax=True"),
    "*.gguf": ("for llama.cpp", ", gguf_file={!r}"),
}


def find_weight_files(folder):
    """Return the file of ``folder`` that names its weights, and the safetensors files that hold them.

    Raises InputError if there are none, or not all of them.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS, [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        raise InputError(_explain_missing_weights(folder))
    places = read_json(index).get("weight_map")
    names = list(places.values()) if isinstance(places, dict) else []
    if not names or not all(isinstance(name, str) and name == Path(name).name != "" for name in names):
        raise InputError(
            f"{index}: weight_map is {places!r:.80}; expected for each tensor a file in the same folder"
        )
    files = sorted({folder / name for name in names})
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} is missing, one of the {len(files)} files that {index.name} names")
    return index, files


def read_weights(path, files, layout, check):
    """Return ``{name: array}`` of what ``find_weight_files`` has found; raise InputError if it is damaged.

    ``layout`` is the module of the architecture, which knows the prefix of its names, which tensors are tied
    and which are no weights. ``check`` is called with ``{name: (shape, type)}`` before arrays are allocated,
    and raises InputError for a tensor that does not fit.
    """
    prefixes = make_prefix_pattern(layout)
    headers = {file: read_header(file) for file in files}
    places = {}
    for file, header in headers.items():
        for stored in header:
            name = stored[prefixes.match(stored).end() :]
            if layout.is_buffer(name):
                continue
            if name in places:
                raise InputError(f"{path} holds {name} twice: as {places[name][1]} and as {stored}")
            places[name] = file, stored
    for copy, name in layout.TIED.items():
        if name not in places and copy in places:
            places[name] = places.pop(copy)
    check({name: headers[file][stored] for name, (file, stored) in places.items()})

    weights = {}
    for file in files:
        names = {stored: name for name, (place, stored) in places.items() if place == file}
        tensors = read_tensors(file, lambda header, names=names: names)
        weights |= {names[stored]: tensor for stored, tensor in tensors.items()}
    return weights


def make_prefix_pattern(layout):
    """Return a pattern for the prefixes of the names of ``layout``, in any order and number."""
    return re.compile(f"({'|'.join(map(re.escape, (*WRAPPERS, layout.PREFIX)))})*")


def _explain_missing_weights(folder):
    """Return the message for a ``folder`` without weights that can be read."""
    for pattern, (what, argument) in OTHERS.items():
        for path in sorted(folder.glob(pattern)):
            where = repr(str(folder))
            code = CONVERT.format(where, argument.format(path.name), where)
            return f'{folder} holds {path.name} ({what}) and no {WEIGHTS}; make one by: python -c "{code}"'
    return f"{folder / WEIGHTS} is missing"
