"""Model folders in Hugging Face's layouts: ``config.json`` and ``model.safetensors``.

``transformers`` reads what is written here and the other way round. Which fields and which names an
architecture has is said by its own module, such as ``gpt2``, which the table of architectures names. What
the configuration has no field for stands under the key ``"minitransformer"``.
"""

import importlib
from pathlib import Path

import numpy as np

import minitransformer
from minitransformer.arrays import array_module, to_numpy
from minitransformer.errors import InputError
from minitransformer.models.table import ARCHITECTURES, find_architecture
from minitransformer.parameters import check_not_read_only
from minitransformer.pretrained.tensor_files import check_tensor, write_tensors
from minitransformer.pretrained.weight_files import find_weight_files, read_weights
from minitransformer.system.file_names import CONFIG, WEIGHTS
from minitransformer.system.files import read_json, write_json


def save_model(model, folder, extra=None):
    """Write ``model`` to ``folder``; each file is written atomically.

    ``extra`` is put under the key ``"minitransformer"`` of ``config.json``, beside what is needed there.
    """
    check_not_read_only(model, "save")
    folder, layout = Path(folder), _load_layout(find_architecture(model))
    config = layout.to_hugging_face(model.config)
    ours = {"version": minitransformer.__version__, **config.pop("minitransformer", {}), **(extra or {})}
    dtype = model.flat.values.dtype.name
    write_tensors(folder / WEIGHTS, _collect_tensors(model, layout))
    write_json(
        folder / CONFIG, {"model_type": layout.MODEL_TYPE, "dtype": dtype, **config, "minitransformer": ours}
    )


def load_model(folder, dtype="float32", device="cpu"):
    """Return the model saved in ``folder``, by this library or by ``transformers``.

    Raises InputError when a file is missing, damaged, or does not fit the configuration. Everything is
    compared with the file before the model takes memory, and what is read is freed as the model gets it.
    """
    config = load_config(folder)
    values = read_values(folder, config, dtype)
    model = find_architecture(config).model(config).build(seed=None, dtype=dtype, device=device)
    assign(model, values)
    return model


def load_config(folder):
    """Return the configuration of the model in ``folder``, such as a ``GPTConfig``."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        unfinished = sorted(path.parent for path in Path(folder).glob(f"*/{CONFIG}"))
        hint = f"; there are {', '.join(map(str, unfinished))}" if unfinished else ""
        raise InputError(f"{folder} holds no trained model: {CONFIG} is missing{hint}")
    table = read_json(path)
    layouts = {layout.MODEL_TYPE: layout for layout in map(_load_layout, ARCHITECTURES.values())}
    kind = table.get("model_type")
    if not isinstance(kind, str) or kind not in layouts:
        known = " or ".join(repr(name) for name in layouts)
        raise InputError(f"{path}: model_type is {kind!r}; expected {known}")
    return layouts[kind].from_hugging_face(table, path)


def read_values(folder, config, dtype):
    """Return ``{path: array}``, the parameters of a model of the shape ``config``, from ``folder``."""
    architecture = find_architecture(config)
    layout = _load_layout(architecture)
    path, files = find_weight_files(folder)
    stored = read_weights(path, files, layout, lambda header: _check_header(header, layout, config, path))
    for copy, name in layout.TIED.items():
        if copy in stored and not np.array_equal(stored.pop(copy), stored[name]):
            raise InputError(f"{path}: {copy} differs from {name}; expected a tied head")

    learned = architecture.model(config).parameters()
    values = {}
    for ours, name, shape in layout.tensors(config):
        tensor = _cast(stored.pop(name), dtype, ours, path)
        if ours in learned:
            values[ours] = tensor
        elif not np.allclose(tensor, layout.constant(ours, shape), rtol=0, atol=1e-6):
            raise InputError(f"{path}: {ours} is not what {CONFIG} says it is")
    return values


def assign(model, values):
    """Move ``values``, ``{path: array}``, into the parameters of ``model``: none of them is left."""
    xp = array_module(model.flat.values)
    for path, parameter in model.parameters().items():
        parameter.value[...] = xp.asarray(values.pop(path))


def _load_layout(architecture):
    """Return the module that says how folders of ``architecture`` are laid out."""
    return importlib.import_module(f"{__package__}.{architecture.layout}")


def _collect_tensors(model, layout):
    parameters, dtype = model.parameters(), model.flat.values.dtype
    unknown = parameters.keys() - {path for path, _, _ in layout.tensors(model.config)}
    if unknown:
        raise TypeError(
            f"the model has parameters that a folder of the type {layout.MODEL_TYPE!r} has no place for: "
            f"{', '.join(sorted(unknown))}"
        )
    return {
        layout.PREFIX + name: np.ascontiguousarray(
            to_numpy(parameters[path].value) if path in parameters else layout.constant(path, shape), dtype
        )
        for path, name, shape in layout.tensors(model.config)
    }


def _check_header(header, layout, config, path):
    """Raise InputError unless the tensors of ``header`` are those of a model of the shape ``config``."""
    layout.check_depth(header, config, path)
    others, shapes = dict(header), {name: shape for _, name, shape in layout.tensors(config)}
    for name, shape in shapes.items():
        check_tensor(path, name, others, shape)
        del others[name]
    for copy, name in layout.TIED.items():
        if copy in others:
            check_tensor(path, copy, others, shapes[name])
            del others[copy]
    if others:
        raise InputError(
            f"{path} holds tensors that a model of the type {layout.MODEL_TYPE!r} does not have: "
            f"{', '.join(sorted(others))}"
        )


def _cast(tensor, dtype, name, path):
    with np.errstate(over="ignore"):
        tensor = tensor.astype(dtype, copy=False)
    if not np.isfinite(tensor).all():
        raise InputError(f"{path}: {name} holds values that are not finite numbers")
    return tensor
