"""The folder of a GPT-2: its configuration and the names of its tensors, in Hugging Face's layout.

What its configuration has no field for stands under the key ``"minitransformer"``. A model without biases is
written with biases of zero, and one with sinusoidal positions with their table, so that every reader computes
the same.
"""

import re
from dataclasses import replace

import numpy as np

from minitransformer.errors import InputError
from minitransformer.functional import sinusoidal_positions
from minitransformer.models import GPT, GPTConfig

MODEL_TYPE = "gpt2"
PREFIX = "transformer."  # of all names in the file
TABLE, HEAD = "wte.weight", "lm_head.weight"
TIED = {HEAD: TABLE}  # one array: a file may hold either, or both
BUFFER = re.compile(r"(^|\.)(attn\.(masked_)?bias|rotary_emb\.inv_freq|position_ids)$")

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

# ours and Hugging Face's, once and for every block
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


def to_hugging_face(config):
    """Return the fields of ``config.json`` for a ``GPTConfig``."""
    return {
        "architectures": ["GPT2LMHeadModel"],
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
            "bias": config.bias,
            "positions": config.positions,
        },
    }


def from_hugging_face(config, path):
    """Return the ``GPTConfig`` of the dictionary ``config``, which stands in the file ``path``.

    Raises InputError for what a GPT here cannot be.
    """
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


def tensors(config):
    """Yield our path, Hugging Face's name and the shape of every tensor of the file."""
    with_all = GPT(replace(config, bias=True, positions="learned"))
    for path, parameter in with_all.parameters().items():
        yield path, _translate_path(path), parameter.shape


def is_buffer(name):
    """Return True if the tensor ``name`` is no weight: a mask, or what can be computed again."""
    return BUFFER.search(name) is not None


def check_depth(names, config, path):
    """Raise InputError if ``names``, those of the tensors in the file ``path``, are of another depth.

    This comes before ``tensors``, which takes time and memory by the depth of ``config``.
    """
    blocks = len({name.split(".")[1] for name in names if name.startswith("h.")})
    if blocks != config.layers:
        raise InputError(f"{path} holds {blocks} blocks; config.json asks for {config.layers}")


def constant(path, shape):
    """Return the tensor of the file where the model learns nothing."""
    if path == "positions.table":
        return sinusoidal_positions(np, np.arange(shape[0]), shape[1], np.float32)
    return np.zeros(shape, np.float32)


def _translate_path(path):
    if not path.startswith("blocks."):
        return NAMES[path]
    _, index, rest = path.split(".", 2)
    return f"h.{index}.{BLOCK_NAMES[rest]}"
