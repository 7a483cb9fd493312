"""Model folders in Hugging Face's GPT-2 layout: ``config.json`` and ``model.safetensors``.

``transformers`` reads what is written here and the other way round. What its configuration has no field
for stands under the key ``"minitransformer"``: a model without biases is written with biases of zero and
one with sinusoidal positions with their table, so that every reader computes the same.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

import minitransformer
from minitransformer.arrays import array_module, to_numpy
from minitransformer.errors import InputError
from minitransformer.functional import sinusoidal_positions
from minitransformer.models import GPT, GPTConfig
from minitransformer.pretrained.tensor_files import check_tensor, write_tensors
from minitransformer.pretrained.weight_files import HEAD, TABLE, WEIGHTS, read_weights, weight_files
from minitransformer.system.files import read_json, write_json

CONFIG = "config.json"
PREFIX = "transformer."
SYNONYMS = {
    "n_ctx": "n_positions",
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
}
# ours and Hugging Face's, of which the first is written
ACTIVATIONS = {
    "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"),
    "gelu_exact": ("gelu", "gelu_python"),
    "relu": ("relu",),
}

# ours → Hugging Face's, once and for every block
NAMES = {
    "embedding.table": TABLE,
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
    write_tensors(folder / WEIGHTS, _tensors(model))
    write_json(folder / CONFIG, _to_hugging_face(model.config, model.flat.values.dtype.name, extra or {}))


def load_model(folder, dtype="float32", device="cpu"):
    """Return the GPT saved in ``folder``, by this library or by ``transformers``.

    Raises InputError when a file is missing, damaged, or does not fit the configuration. Everything is
    compared with the file before the model takes memory, and what is read goes as the model gets it.
    """
    config = load_config(folder)
    values = read_values(folder, config, dtype)
    model = GPT(config).build(seed=None, dtype=dtype, device=device)
    assign(model, values)
    return model


def load_config(folder):
    """Return the ``GPTConfig`` of the model in ``folder``."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise InputError(f"{folder} holds no trained model: {CONFIG} is missing")
    return _from_hugging_face(read_json(path), path)


def read_values(folder, config, dtype):
    """Return ``{path: array}``, the parameters of a model of the shape ``config``, from ``folder``."""
    path, files = weight_files(folder)
    tensors = read_weights(path, files, lambda header: _check_header(header, config, path))
    head = tensors.pop(HEAD, None)
    if head is not None and not np.array_equal(head, tensors[TABLE]):
        raise InputError(f"{path}: {HEAD} differs from {TABLE}; expected a tied head")

    learned = GPT(config).parameters()
    values = {}
    for ours, name, shape in _layout(config):
        tensor = _cast(tensors.pop(name), dtype, ours, path)
        if ours in learned:
            values[ours] = tensor
        elif not np.allclose(tensor, _constant(ours, shape), rtol=0, atol=1e-6):
            raise InputError(f"{path}: {ours} is not what {CONFIG} says it is")
    return values


def assign(model, values):
    """Move ``values``, ``{path: array}``, into the parameters of ``model``: none of them is left."""
    xp = array_module(model.flat.values)
    for path, parameter in model.parameters().items():
        parameter.value[...] = xp.asarray(values.pop(path))


def _to_hugging_face(config, dtype, extra):
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "dtype": dtype,
        "vocab_size": config.vocabulary_size,
        "n_positions": config.context_length,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.feed_forward_width,
        "activation_function": ACTIVATIONS[config.activation][0],
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
    config = {**{SYNONYMS[name]: value for name, value in config.items() if name in SYNONYMS}, **config}
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
    names = {theirs: mine for mine, all_theirs in ACTIVATIONS.items() for theirs in all_theirs}
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
    parameters, dtype = model.parameters(), model.flat.values.dtype
    return {
        PREFIX + name: np.ascontiguousarray(
            to_numpy(parameters[path].value) if path in parameters else _constant(path, shape), dtype
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


def _check_header(header, config, path):
    """Raise InputError unless the tensors of ``header`` are those of a model of the shape ``config``."""
    blocks = len({name.split(".")[1] for name in header if name.startswith("h.")})
    if blocks != config.layers:
        raise InputError(f"{path} holds {blocks} blocks; {CONFIG} asks for {config.layers}")
    others = dict(header)
    for _, name, shape in _layout(config):
        check_tensor(path, name, others, shape)
        del others[name]
    if HEAD in others:
        check_tensor(path, HEAD, others, (config.vocabulary_size, config.width))
        del others[HEAD]
    if others:
        raise InputError(f"{path} holds tensors that a GPT-2 does not have: {', '.join(sorted(others))}")


def _cast(tensor, dtype, name, path):
    with np.errstate(over="ignore"):
        tensor = tensor.astype(dtype, copy=False)
    if not np.isfinite(tensor).all():
        raise InputError(f"{path}: {name} holds values that are not finite numbers")
    return tensor
