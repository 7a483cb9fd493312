"""Layers: their gradients by differences, and their values and gradients against PyTorch's own layers."""

import math

import numpy as np
import pytest
from common.autograd import against, with_autograd
from common.blocks import post_norm_block, pre_norm_block
from common.layer_table import KEY, LAYER_CASES, check, draw, draw_inputs
from common.masks import naive_visible

from minitransformer import inference, layers
from minitransformer.functional import Key, Mask, causal_mask, full_mask
from minitransformer.layers import (
    CrossAttention,
    Dropout,
    FeedForward,
    Linear,
    SelfAttention,
    SinusoidalPositions,
)
from minitransformer.parameters import Layer


@pytest.mark.parametrize("name", LAYER_CASES)
def test_gradient_is_that_of_the_forward(name):
    layer, inputs, _ = LAYER_CASES[name]
    errors = check(name)
    differentiable = sum(isinstance(shape, tuple) for shape in inputs)
    assert len(errors) == differentiable + len(layer.parameters())


def test_every_layer_is_in_the_table():
    known = {value for value in vars(layers).values() if isinstance(value, type) and issubclass(value, Layer)}
    missing = {layer.__name__ for layer in known - {type(layer) for layer, _, _ in LAYER_CASES.values()}}
    assert not missing, f"give it a row in LAYER_CASES of tests/common/layer_table.py: {missing}"


# --- what a call does and does not do


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYER_CASES)
def test_type_in_is_type_out(name, dtype):
    layer, inputs, settings = LAYER_CASES[name]
    layer.build(dtype=dtype)
    inputs = [value.astype(dtype) if value.dtype.kind == "f" else value for value in draw_inputs(inputs)]
    y, pullback = layer(*inputs, **settings)
    assert y.dtype == dtype
    gradients = pullback(np.ones_like(y))
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    for value, gradient in zip(inputs, gradients, strict=False):
        if value.dtype.kind == "f":
            assert (gradient.dtype, gradient.shape) == (value.dtype, value.shape)


def test_pullbacks_add_and_do_not_meet():
    # two calls before either pullback: the gradients are the sum of two calls one after the other
    block = pre_norm_block(4, 2, 5).build(dtype="float64")
    x, other = draw(2, 4, 4), draw(3, 2, 4)
    expected = np.zeros_like(block.flat.gradients)
    for value in (x, other):
        block.zero_gradients()
        y, pullback = block(value, causal_mask(4))
        pullback(np.cos(y))
        expected += block.flat.gradients
    block.zero_gradients()
    calls = [block(value, causal_mask(4)) for value in (x, other)]
    for y, pullback in calls:
        pullback(np.cos(y))
    np.testing.assert_allclose(block.flat.gradients, expected, atol=1e-14)


def test_dropout_is_the_identity_without_a_key_and_at_rate_zero():
    x = draw(2, 3)
    for layer, key in ((Dropout(0.5), None), (Dropout(0), KEY)):
        y, pullback = layer(x, key)
        assert y is x and pullback(x) is x


def test_attention_layers_drop_with_the_key_that_they_are_given():
    layer = SelfAttention(4, 2, dropout=0.5).build(dtype="float64")
    x = draw(1, 4, 4)
    outputs = [layer(x, causal_mask(4), key)[0] for key in (KEY, KEY, Key(22, 4), None)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.allclose(outputs[0], outputs[2]) and not np.allclose(outputs[0], outputs[3])


def test_parts_of_a_block_drop_independently():
    # with zero weights all parts but the dropouts vanish: y = x + drop1(b) + drop2(b)
    block = pre_norm_block(64, 2, 5, dropout=0.5).build(dtype="float64")
    block.flat.values[...] = 0
    block.attention.output.bias.value[...] = 1
    block.feed_forward.output.bias.value[...] = 4
    y, _ = block(np.zeros((4, 8, 64)), full_mask(8), KEY)
    counts = [np.mean(y == total) for total in (0, 2, 8, 10)]
    np.testing.assert_allclose(counts, 0.25, atol=5 * math.sqrt(0.25 * 0.75 / y.size))


def test_under_inference_there_is_no_backward():
    layer = Linear(4, 3).build()
    with inference():
        _, pullback = layer(np.ones((2, 4), np.float32))
    with pytest.raises(RuntimeError, match=r"linear_backward: the forward ran under inference\(\)"):
        pullback(np.ones((2, 3), np.float32))


def test_sinusoids_are_those_of_the_paper():
    count, width = 7, 5
    y, _ = SinusoidalPositions()(np.zeros((1, count, width)), np.arange(count))
    for p in range(count):
        for d in range(width):
            angle = p / 10000 ** ((d - d % 2) / width)
            assert y[0, p, d] == pytest.approx(math.cos(angle) if d % 2 else math.sin(angle), abs=1e-15)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SelfAttention(6, 4), "a width of 6 cannot be divided into 4 heads"),
        (lambda: CrossAttention(6, 0), "a width of 6 cannot be divided into 0 heads"),
        (lambda: SelfAttention(8, 4, 3), "4 query heads cannot be shared evenly by 3 key/value heads"),
        (
            lambda: FeedForward(4, 8, "gelu"),
            "activation is 'gelu'; expected one of gelu_exact, gelu_tanh, relu",
        ),
    ],
)
def test_impossible_settings_are_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- against PyTorch's layers


def hidden(mask, batch, heads, queries, keys):
    """Return the mask in the form of PyTorch's attention: (B·H, Tq, Tk), True where nothing is seen."""
    return ~naive_visible(mask, batch, queries, keys).repeat(heads, axis=0)


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
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        return y, [*gradients, *(p.gradient for p in layer.parameters().values())]

    against(ours, with_autograd(torch, theirs), arrays | parameters)


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
