"""Model folders in Hugging Face's GPT-2 layout: ``config.json`` and ``model.safetensors``.

``transformers`` reads what is written here and the other way round. What its configuration has no field
for stands under the key ``"minitransformer"``: a model without biases is written with biases of zero and
one with sinusoidal positions with their table, so that every reader computes the same.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import minitransformer
from minitransformer.arrays import array_module, to_numpy
from minitransformer.errors import InputError
from minitransformer.files import read_json, replacing, write_json
from minitransformer.functional import sinusoidal_positions
from minitransformer.models import GPT, GPTConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu_exact": "gelu", "relu": "relu"}
PREFIX = "transformer."
FLOATS = "float16", "bfloat16", "float32", "float64"

# ours → Hugging Face's, once and for every block
NAMES = {
    "embedding.table": "wte.weight",
    "positions.table": "wpe.weight",
    "norm.gain": "ln_f.weight",
    "norm.bias": "ln_f.bias",
}
BLOCK_NAMES = {
    "norm1.gain": "ln_1.weight",
    "norm1.bias": "ln_1.bias",
    "attention.query_key_value.weight": "attn.c_attn.weight",
    "attention.query_key_value.bias": "attn.c_attn.bias",
    "attention.output.weight": "attn.c_proj.weight",
    "attention.output.bias": "attn.c_proj.bias",
    "norm2.gain": "ln_2.weight",
    "norm2.bias": "ln_2.bias",
    "feed_forward.hidden.0.weight": "mlp.c_fc.weight",
    "feed_forward.hidden.0.bias": "mlp.c_fc.bias",
    "feed_forward.output.weight": "mlp.c_proj.weight",
    "feed_forward.output.bias": "mlp.c_proj.bias",
}


def save_model(model, folder, extra=None):
    """Write ``model`` to ``folder``; each file is replaced whole or not at all.

    ``extra`` is put under the key ``"minitransformer"`` of ``config.json``, beside what is needed there.
    """
    folder = Path(folder)
    tensors = _tensors(model)
    with replacing(folder / WEIGHTS) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt", "sha256": _digest(tensors)})
        except SafetensorError as error:
            raise OSError(f"cannot write {folder / WEIGHTS}: {error}") from None
    write_json(folder / CONFIG, _to_hugging_face(model.config, extra or {}))


def load_model(folder, dtype="float32", device="cpu"):
    """Return the GPT saved in ``folder``, by this library or by ``transformers``.

    Raises InputError when a file is missing, damaged, or does not fit the configuration. Everything is
    compared with the file before the model takes memory.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} holds no trained model: {CONFIG} is missing")
    config = _from_hugging_face(read_json(folder / CONFIG), folder / CONFIG)
    path = folder / WEIGHTS
    tensors = _read_tensors(path)
    blocks = len({name.split(".")[1] for name in tensors if name.startswith("h.")})
    if blocks != config.layers:
        raise InputError(f"{path} holds {blocks} blocks; {CONFIG} asks for {config.layers}")
    taken = {ours: _take(tensors, name, shape, path) for ours, name, shape in _layout(config)}
    head = tensors.pop("lm_head.weight", None)
    if head is not None and not np.array_equal(head, taken["embedding.table"]):
        raise InputError(f"{path}: lm_head.weight differs from wte.weight; expected a tied head")
    if tensors:
        raise InputError(f"{path} holds tensors that a GPT-2 does not have: {', '.join(tensors)}")

    model = GPT(config).build(seed=None, dtype=dtype, device=device)
    xp = array_module(model.flat.values)
    for ours, parameter in model.parameters().items():
        parameter.value[...] = xp.asarray(_cast(taken.pop(ours), dtype, ours, path))
    for ours, tensor in taken.items():
        if not np.allclose(tensor, _constant(ours, tensor.shape), rtol=0, atol=1e-6):
            raise InputError(f"{path}: {ours} is not what {CONFIG} says it is")
    return model


def _to_hugging_face(config, extra):
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "dtype": "float32",
        "vocab_size": config.vocabulary_size,
        "n_positions": config.context_length,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.feed_forward_width,
        "activation_function": ACTIVATIONS[config.activation],
        "layer_norm_epsilon": config.eps,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "minitransformer": {
            "version": minitransformer.__version__,
            "bias": config.bias,
            "positions": config.positions,
            **extra,
        },
    }


def _from_hugging_face(config, path):
    if config.get("model_type") != "gpt2":
        raise InputError(f"{path}: model_type is {config.get('model_type')!r}; expected 'gpt2'")
    for name, expected in {
        "tie_word_embeddings": True,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }.items():
        if config.get(name, expected) != expected:
            raise InputError(f"{path}: {name} is {config[name]}; only {expected} is supported")
    rates = [config.get(name, 0.1) for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop")]
    if rates != [rates[0]] * 3:
        raise InputError(f"{path}: the three dropout rates differ ({rates}); expected one rate")
    ours = config.get("minitransformer", {})
    if not isinstance(ours, dict):
        raise InputError(f"{path}: minitransformer is {ours!r}; expected a JSON object")
    names = {theirs: mine for mine, theirs in ACTIVATIONS.items()}
    activation = config.get("activation_function", "gelu_new")
    if activation not in list(names):
        raise InputError(f"{path}: activation_function is {activation!r}; expected {', '.join(names)}")
    try:
        return GPTConfig(
            vocabulary_size=config["vocab_size"],
            context_length=config["n_positions"],
            layers=config["n_layer"],
            heads=config["n_head"],
            width=config["n_embd"],
            feed_forward_width=config.get("n_inner"),
            activation=names[activation],
            bias=ours.get("bias", True),
            positions=ours.get("positions", "learned"),
            dropout=rates[0],
            eps=config.get("layer_norm_epsilon", 1e-5),
        )
    except KeyError as error:
        raise InputError(f"{path}: the field {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}") from None


def _tensors(model):
    parameters = model.parameters()
    return {
        PREFIX + name: np.ascontiguousarray(
            to_numpy(parameters[path].value) if path in parameters else _constant(path, shape), np.float32
        )
        for path, name, shape in _layout(model.config)
    }


def _layout(config):
    """Yield our path, Hugging Face's name and the shape of every tensor of the file."""
    with_all = GPT(replace(config, bias=True, positions="learned"))
    for path, parameter in with_all.parameters().items():
        yield path, _hugging_face_name(path), parameter.shape


def _constant(path, shape):
    """Return what the file holds where the model learns nothing."""
    if path == "positions.table":
        return sinusoidal_positions(np, np.arange(shape[0]), shape[1], np.float32)
    return np.zeros(shape, np.float32)


def _hugging_face_name(path):
    if not path.startswith("blocks."):
        return NAMES[path]
    _, index, rest = path.split(".", 2)
    return f"h.{index}.{BLOCK_NAMES[rest]}"


def _read_tensors(path):
    """Return the tensors of a safetensors file, by name without prefix, the masks of old files left out."""
    if not path.is_file():
        raise InputError(f"{path} is missing")
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            recorded = (file.metadata() or {}).get("sha256")
    except (SafetensorError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged or no safetensors file: {error}") from None
    if recorded and recorded != _digest(tensors):
        raise InputError(f"{path} is damaged: its content does not match the SHA-256 it was saved with")
    return {
        name.removeprefix(PREFIX): tensor
        for name, tensor in tensors.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias"))
    }


def _take(tensors, name, shape, path):
    if name not in tensors:
        raise InputError(f"{path}: the tensor {name} is missing")
    tensor = tensors.pop(name)
    if tensor.shape != shape:
        raise InputError(f"{path}: {name} has shape {tensor.shape}; {CONFIG} asks for {shape}")
    if tensor.dtype.name not in FLOATS:
        raise InputError(f"{path}: {name} has type {tensor.dtype.name}; expected one of {', '.join(FLOATS)}")
    return tensor


def _cast(tensor, dtype, name, path):
    with np.errstate(over="ignore"):
        tensor = tensor.astype(dtype)
    if not np.isfinite(tensor).all():
        raise InputError(f"{path}: {name} holds values that are not finite numbers")
    return tensor


def _digest(tensors):
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]))
    return digest.hexdigest()
