"""Every layer against PyTorch: written in operations of PyTorch, and where it has the layer, against that.

``ROWS`` has the layers that are compared, with their options, and ``REFERENCES`` what they are compared with.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from common.autograd import against, with_autograd
from common.blocks import post_norm_block, pre_norm_block
from common.layer_table import KEY, MEMORY, PADDED, X, draw
from common.masks import naive_visible
from common.torch_layers import REFERENCES
from common.torch_operations import Reference

from minitransformer import layers
from minitransformer.functional import Mask, causal_mask, full_mask
from minitransformer.layers import (
    AddLayerNorm,
    CrossAttention,
    Dropout,
    Embedding,
    FeedForward,
    LayerNorm,
    LearnedPositions,
    Linear,
    LinearGelu,
    Relu,
    SelfAttention,
    SinusoidalPositions,
)
from minitransformer.parameters import Layer

HERE = Path(__file__).name
TABLE = "REFERENCES of tests/common/torch_layers.py"


def compare(layer, arrays, settings, theirs, torch):
    """Compare ``layer`` with ``theirs``, a function of named tensors: the arrays and our parameters."""
    random = np.random.default_rng(5)
    layer.build(dtype="float64")
    parameters = {path: random.normal(0.3, 0.5, p.shape) for path, p in layer.parameters().items()}

    def ours(inputs, dy):
        layer.build(dtype=str(dy.dtype))
        for path, parameter in layer.parameters().items():
            parameter.value[...] = inputs[path]
        y, pullback = layer(*(inputs[name] for name in arrays), **settings)
        gradients = pullback(dy)
        gradients = [gradients] if hasattr(gradients, "shape") else gradients or ()  # those of arrays
        return y, [*gradients, *(p.gradient for p in layer.parameters().values())]

    against(ours, with_autograd(torch, theirs), arrays | parameters)


class Row(NamedTuple):
    """What builds a layer, its sizes and options, the shapes of its inputs, and the settings of its call.

    The reference is given the options, too, and has its own defaults where one is not given.
    """

    build: Callable
    sizes: tuple
    options: dict[str, Any]
    inputs: tuple = (X,)
    settings: dict[str, Any] = {}  # noqa: RUF012 - nobody writes into it


IDS = np.array([[0, 4, 4], [1, 0, 0]])
TWO = (2, 3, 4), (2, 5, 4)
DROPPING = {"mask": PADDED, "key": KEY}
ROWS = [
    Row(Linear, (4, 3), {}),
    Row(Linear, (4, 3), {"bias": False}),
    Row(LinearGelu, (4, 3), {"form": "exact"}),
    Row(LinearGelu, (4, 3), {"form": "tanh", "bias": False}),
    Row(Embedding, (5, 3), {}, (), {"ids": IDS}),
    Row(LearnedPositions, (6, 4), {}, (X,), {"positions": np.arange(4)}),
    Row(LearnedPositions, (6, 4), {}, (X,), {"positions": np.array([[0, 1, 2, 3], [2, 2, 0, 1]])}),
    Row(SinusoidalPositions, (), {}, (X,), {"positions": np.arange(4)}),
    Row(LayerNorm, (4,), {}),
    Row(LayerNorm, (4,), {"bias": False, "eps": 0.1}),
    Row(AddLayerNorm, (4,), {}, (X, X)),
    Row(AddLayerNorm, (4,), {"bias": False, "eps": 0.1}, (X, X)),
    Row(Dropout, (), {"rate": 0.4}, (X,), {"key": KEY}),
    Row(Dropout, (), {"rate": 0.4}),
    Row(Relu, (), {}),
    Row(FeedForward, (4, 5), {}),
    Row(FeedForward, (4, 5), {"activation": "gelu_tanh", "bias": False}),
    Row(FeedForward, (4, 5), {"activation": "relu"}),
    Row(SelfAttention, (4,), {"heads": 2}, (X,), DROPPING),
    Row(SelfAttention, (8,), {"heads": 4, "kv_heads": 2}, ((2, 3, 8),), {"mask": causal_mask(3)}),
    Row(SelfAttention, (4,), {"heads": 2, "bias": False, "dropout": 0.3}, (X,), DROPPING),
    Row(CrossAttention, (4,), {"heads": 2}, TWO, {"mask": MEMORY, "key": KEY}),
    Row(CrossAttention, (4,), {"heads": 2, "memory_width": 6}, (X, (2, 5, 6)), {"mask": MEMORY}),
    Row(CrossAttention, (4,), {"heads": 2, "bias": False, "dropout": 0.3}, TWO, {"mask": MEMORY, "key": KEY}),
    *(
        row
        for build in (pre_norm_block, post_norm_block)
        for row in (
            Row(build, (4,), {"heads": 2, "hidden_width": 5}, (X,), DROPPING),
            Row(build, (4,), {"heads": 2, "hidden_width": 5, "activation": "gelu_tanh"}, (X,), DROPPING),
            Row(
                build,
                (4,),
                {"heads": 2, "hidden_width": 5, "bias": False, "dropout": 0.3, "eps": 0.1},
                (X,),
                DROPPING,
            ),
        )
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.build.__name__} {row.options}")
def test_every_row_is_what_its_reference_says(row, torch):
    layer = row.build(*row.sizes, **row.options)
    arrays = {f"input {i}": draw(*shape, seed=100 + i) for i, shape in enumerate(row.inputs)}
    options = {name: value for name, value in row.options.items() if name != "hidden_width"}

    reference = REFERENCES.get(type(layer))
    assert reference, f"write {type(layer).__name__} in operations of PyTorch, in {TABLE}"

    def theirs(tensors):
        inputs = [tensors[name] for name in arrays]
        return reference(Reference(torch), tensors, *inputs, **options, **row.settings)

    compare(layer, arrays, row.settings, theirs, torch)


def test_every_layer_has_a_reference():
    known = {value for value in vars(layers).values() if isinstance(value, type) and issubclass(value, Layer)}
    missing = {layer.__name__ for layer in known - REFERENCES.keys()}
    assert not missing, f"write it in operations of PyTorch, in {TABLE}: {missing}"
    built = {type(row.build(*row.sizes, **row.options)) for row in ROWS}
    missing = {layer.__name__ for layer in known - built}
    assert not missing, f"give it rows in ROWS of {HERE}: {missing}"


@pytest.mark.parametrize("build", dict.fromkeys(row.build for row in ROWS), ids=lambda build: build.__name__)
def test_every_option_of_a_layer_is_compared_with_its_reference(build):
    """Also where it is not given: a layer must have the default that its reference has."""
    rows = [row.options for row in ROWS if row.build is build]
    for name, parameter in inspect.signature(build).parameters.items():
        if parameter.default is not parameter.empty:
            place = f"a row of {build.__name__} in ROWS of {HERE}"
            assert any(name not in options for options in rows), f"leave {name} out in {place}"
            others = [options[name] for options in rows if name in options]
            assert any(value != parameter.default for value in others), f"give another {name} in {place}"


# --- against PyTorch's layers


def hidden(mask, batch, heads, queries, keys):
    """Return the mask in the form of PyTorch's attention: (B·H, Tq, Tk), True where nothing is seen."""
    return ~naive_visible(mask, batch, queries, keys).repeat(heads, axis=0)


def linear_names(tensors, theirs, ours):
    """Return ``{PyTorch's name: tensor}`` for one linear layer of ours."""
    found = {f"{theirs}.weight": tensors[f"{ours}.weight"].T}
    if f"{ours}.bias" in tensors:
        found[f"{theirs}.bias"] = tensors[f"{ours}.bias"]
    return found


def self_attention_names(tensors, ours=""):
    packed = f"{ours}query_key_value"
    found = {"in_proj_weight": tensors[f"{packed}.weight"].T}
    if f"{packed}.bias" in tensors:
        found["in_proj_bias"] = tensors[f"{packed}.bias"]
    return found | linear_names(tensors, "out_proj", f"{ours}output")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "mask", [full_mask(5), causal_mask(5), Mask(np.array([5, 3])), Mask(np.array([5, 4]), np.array([0, 2]))]
)
def test_self_attention_against_pytorch(mask, bias, torch):
    width, heads = 12, 3
    theirs = torch.nn.MultiheadAttention(width, heads, bias=bias, batch_first=True)
    not_seen = torch.tensor(hidden(mask, 2, heads, 5, 5))

    def call(tensors):
        x = tensors["x"]
        arguments = {"attn_mask": not_seen, "need_weights": False}
        return torch.func.functional_call(theirs, self_attention_names(tensors), (x, x, x), arguments)[0]

    compare(SelfAttention(width, heads, bias=bias), {"x": draw(2, 5, width)}, {"mask": mask}, call, torch)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("memory_width", [12, 8])
def test_cross_attention_against_pytorch(memory_width, bias, torch):
    width, heads, mask = 12, 3, full_mask(np.array([6, 4]))
    same = memory_width == width
    theirs = torch.nn.MultiheadAttention(
        width,
        heads,
        bias=bias,
        kdim=None if same else memory_width,
        vdim=None if same else memory_width,
        batch_first=True,
    )
    not_seen = torch.tensor(hidden(mask, 2, heads, 5, 6))

    def call(tensors):
        query, packed = tensors["query.weight"].T, tensors["key_value.weight"].T
        found = linear_names(tensors, "out_proj", "output")
        if same:
            found["in_proj_weight"] = torch.cat((query, packed))
        else:
            found["q_proj_weight"] = query
            found["k_proj_weight"], found["v_proj_weight"] = packed.split(width)
        if bias:
            found["in_proj_bias"] = torch.cat((tensors["query.bias"], tensors["key_value.bias"]))
        arrays = tensors["x"], tensors["memory"], tensors["memory"]
        arguments = {"attn_mask": not_seen, "need_weights": False}
        return torch.func.functional_call(theirs, found, arrays, arguments)[0]

    layer = CrossAttention(width, heads, memory_width, bias=bias)
    arrays = {"x": draw(2, 5, width), "memory": draw(2, 6, memory_width, seed=101)}
    compare(layer, arrays, {"mask": mask}, call, torch)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["gelu_exact", "relu"])
@pytest.mark.parametrize("block", [pre_norm_block, post_norm_block])
def test_blocks_against_pytorch(block, activation, bias, torch):
    width, heads, hidden_width, mask, eps = 12, 3, 20, Mask(np.array([5, 3])), 1e-6
    theirs = torch.nn.TransformerEncoderLayer(
        width,
        heads,
        hidden_width,
        dropout=0.0,
        activation=activation.removesuffix("_exact"),
        layer_norm_eps=eps,
        batch_first=True,
        norm_first=block is pre_norm_block,
        bias=bias,
    )
    not_seen = torch.tensor(hidden(mask, 2, heads, 5, 5))

    def call(tensors):
        found = {f"self_attn.{name}": t for name, t in self_attention_names(tensors, "attention.").items()}
        found |= linear_names(tensors, "linear1", "feed_forward.hidden.0")
        found |= linear_names(tensors, "linear2", "feed_forward.output")
        for norm in ("norm1", "norm2"):
            found[f"{norm}.weight"] = tensors[f"{norm}.gain"]
            if bias:
                found[f"{norm}.bias"] = tensors[f"{norm}.bias"]
        return torch.func.functional_call(theirs, found, (tensors["x"],), {"src_mask": not_seen})

    layer = block(width, heads, hidden_width, activation, bias=bias, eps=eps)
    compare(layer, {"x": draw(2, 5, width)}, {"mask": mask}, call, torch)
