"""Layers: their gradients by differences, their initial values, and what a call does and does not do."""

import math
from pathlib import Path

import numpy as np
import pytest
from common.blocks import pre_norm_block
from common.layer_table import KEY, LAYER_CASES, check, draw, draw_inputs

from minitransformer import inference, layers
from minitransformer.functional import Key, causal_mask, full_mask
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


# --- initial values


# mean and deviation of every kind of parameter
INITIAL = {"weight": (0, 0.02), "table": (0, 0.02), "gain": (1, 0), "bias": (0, 0)}


@pytest.mark.parametrize("name", LAYER_CASES)
def test_parameters_start_where_their_kind_does(name):
    layer, _, _ = LAYER_CASES[name]
    for path, parameter in layer.build().parameters().items():
        kind = path.rpartition(".")[2]
        assert kind in INITIAL, (
            f"{path}: say in INITIAL of {Path(__file__).name} at which values a {kind} starts"
        )
        mean, deviation = INITIAL[kind]
        if not deviation:
            np.testing.assert_array_equal(parameter.value, mean, err_msg=path)
        else:
            assert abs(parameter.value.mean() - mean) < deviation, path
            assert deviation / 2 < parameter.value.std() < 2 * deviation, path


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
