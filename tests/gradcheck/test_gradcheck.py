"""The gradient check itself: it must accept what is right, refuse what is wrong, and say where."""

import re

import numpy as np
import pytest
from common.blocks import pre_norm_block

from minitransformer import dispatch
from minitransformer.functional import causal_mask, softmax, softmax_backward
from minitransformer.gradcheck import (
    ELEMENTS_UP_TO,
    GradientError,
    UndecidedError,
    check_layer,
    check_model,
    check_operation,
)
from minitransformer.layers import FeedForward, LayerNorm, Linear
from minitransformer.models import GPT, GPTConfig
from minitransformer.parameters import Layer


def cube_and_scale(x, factors):
    """An operation that is easy to get wrong in a known place."""
    return x**3 * factors, (x, factors)


def cube_and_scale_backward(dy, saved):
    x, factors = saved
    return 3 * x**2 * factors * dy, x**3 * dy


def square(x):
    return x**2, x


def wrong_at(index, change):
    """Return the backward above with ``change`` applied to ``dx`` at ``index``."""

    def backward(dy, saved):
        dx, dfactors = cube_and_scale_backward(dy, saved)
        dx[index] = change(dx[index])
        return dx, dfactors

    return backward


def draw(*shape, seed=100):
    return np.random.default_rng(seed).normal(1.0, 0.5, size=shape)


X = np.random.default_rng(7).normal(size=2000)
SMALL = 3, 4
LARGE = 30, 40
assert 2 * np.prod(LARGE) > ELEMENTS_UP_TO


# --- what is right


@pytest.mark.parametrize(("shape", "tolerance"), [(SMALL, 1e-6), (LARGE, 1e-8)])
def test_a_right_gradient_passes_and_the_errors_are_returned(shape, tolerance):
    x, factors = draw(*shape), draw(*shape, seed=101)
    kept = x.copy()
    errors = check_operation(cube_and_scale, cube_and_scale_backward, x, factors)
    assert list(errors) == ["x", "factors"]
    assert all(isinstance(error, float) and 0 <= error <= tolerance for error in errors.values())
    np.testing.assert_array_equal(x, kept)


def test_arguments_without_names_are_numbered():
    def product(*arrays):
        return arrays[0] * arrays[1], arrays

    errors = check_operation(product, lambda dy, saved: (dy * saved[1], dy * saved[0]), draw(3), draw(3))
    assert list(errors) == ["argument 0", "argument 1"]


def test_an_argument_left_out_has_no_error():
    errors = check_operation(dispatch.linear, dispatch.linear_backward, draw(2, 3), draw(3, 4), None)
    assert list(errors) == ["x", "weight"]


def test_a_layer_is_checked_in_inputs_and_parameters():
    errors = check_layer(LayerNorm(4).build(dtype="float64"), draw(3, 4))
    assert list(errors) == ["x", "gain", "bias"]


def test_a_gradient_that_is_zero_by_theory_passes():
    # what every key has in common changes no weight of a softmax: the bias of the keys has no effect
    layer = pre_norm_block(8, 2, 8).build(dtype="float64")
    errors = check_layer(layer, draw(2, 3, 8), mask=causal_mask(3))
    assert errors["attention.query_key_value.bias"] <= 1e-6


# --- what is wrong


@pytest.mark.parametrize("index", [(0, 0), (1, 2), (2, 3)])
def test_the_message_says_what_is_wrong_and_where(index):
    with pytest.raises(GradientError) as caught:
        check_operation(cube_and_scale, wrong_at(index, lambda g: 2 * g), draw(*SMALL), draw(*SMALL))
    found = re.fullmatch(
        r"cube_and_scale: the gradient of x is wrong; at index \((\d), (\d)\) backward gives (\S+) "
        r"and the difference of forwards (\S+) \(relative error (\S+)\)",
        str(caught.value),
    )
    assert found is not None
    assert tuple(map(int, found.group(1, 2))) == index
    analytic, numeric, error = map(float, found.group(3, 4, 5))
    assert analytic == pytest.approx(2 * numeric, rel=1e-6)
    assert error > 1e-3


def test_an_error_of_one_in_a_hundred_thousand_is_caught():
    with pytest.raises(GradientError, match="gradient of x"):
        check_operation(cube_and_scale, wrong_at(..., lambda g: g * (1 + 1e-5)), draw(*SMALL), draw(*SMALL))


def test_a_wrong_block_of_a_large_array_is_caught_and_located():
    with pytest.raises(GradientError, match=r"gradient of x is wrong; at index \(1[0-2], \d+\)"):
        check_operation(
            cube_and_scale, wrong_at(slice(10, 13), lambda g: 1.1 * g), draw(*LARGE), draw(*LARGE)
        )


def test_one_wrong_entry_of_a_large_array_is_caught():
    with pytest.raises(GradientError, match="gradient of x"):
        check_operation(cube_and_scale, wrong_at((17, 5), lambda g: 1.1 * g), draw(*LARGE), draw(*LARGE))


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_no_number_is_caught(value, shape):
    with pytest.raises(GradientError, match=rf"at index \(2, 1\) backward gives {value}"):
        check_operation(cube_and_scale, wrong_at((2, 1), lambda _: value), draw(*shape), draw(*shape))


def test_a_gradient_of_the_wrong_shape_is_caught():
    def backward(dy, saved):
        dx, dfactors = cube_and_scale_backward(dy, saved)
        return dx, dfactors.reshape(1, -1)

    for shape in (SMALL, LARGE):
        with pytest.raises(GradientError, match="factors"):
            check_operation(cube_and_scale, backward, draw(*shape), draw(*shape))


def test_a_gradient_that_is_missing_is_caught():
    def backward(dy, saved):
        return cube_and_scale_backward(dy, saved)[0], None

    with pytest.raises(GradientError, match="factors"):
        check_operation(cube_and_scale, backward, draw(*SMALL), draw(*SMALL))


def test_the_upstream_gradient_is_not_one_everywhere():
    # under an upstream gradient of ones softmax has no gradient, and this would be right
    with pytest.raises(GradientError, match="softmax: the gradient of x"):
        check_operation(softmax, lambda dy, saved: (0 * dy,), draw(3, 4))
    check_operation(softmax, softmax_backward, draw(3, 4))


def test_the_upstream_gradient_is_not_what_a_test_would_draw():
    # with x drawn from the same seed this wrong gradient, which takes x for dy, would be right
    x = np.random.default_rng(0).normal(size=(3, 4))
    with pytest.raises(GradientError, match="square: the gradient of x"):
        check_operation(square, lambda dy, saved: (2 * saved * saved,), x, seed=0)


# --- kinks; test_gradcheck_kinks has more


def test_relu_is_checked_between_its_kinks():
    near = draw(20, 20)
    near[0, :4] = 6e-6, -6e-6, 6e-9, -6e-12  # closer than a step
    errors = check_operation(dispatch.relu, dispatch.relu_backward, near)
    assert errors["x"] <= 1e-6
    check_layer(FeedForward(6, 50, "relu").build(dtype="float64"), draw(2, 3, 6))  # 600 parameters


def test_a_wrong_gradient_of_relu_is_caught():
    wrong = 2, 3

    def backward(dy, saved):
        (dx,) = dispatch.relu_backward(dy, saved)
        dx[wrong] += 1
        return (dx,)

    with pytest.raises(GradientError, match=r"relu: the gradient of x is wrong; at index \(2, 3\)"):
        check_operation(dispatch.relu, backward, draw(*SMALL))


@pytest.mark.parametrize("shape", [SMALL, (50, 60)])
def test_on_a_kink_any_gradient_between_the_slopes_on_both_sides_is_right(shape):
    def relu(x):
        return np.maximum(x, 0.0), x

    x = np.round(draw(*shape))
    assert (x == 0).any()
    for at_kink in (0.0, 0.3, 1.0):
        check_operation(relu, lambda dy, x, g=at_kink: (dy * np.where(x == 0, g, x > 0),), x)
        check_operation(relu, lambda dy, x, g=at_kink: (dy * np.where(x == 0, g, x > 0),), 0 * x)
    for beyond in (-0.1, 1.1):
        with pytest.raises(GradientError, match="relu: the gradient of x is wrong; at index"):
            check_operation(relu, lambda dy, x, g=beyond: (dy * np.where(x == 0, g, x > 0),), 0 * x)
    with pytest.raises(GradientError, match="relu: the gradient of x is wrong; at index"):
        check_operation(relu, lambda dy, x: (dy * (x > 1),), x)


def test_ties_are_kinks():
    a, b = np.round(draw(2, 40, 50) * 4)

    def larger(a, b):
        return np.maximum(a, b), a >= b

    assert (a == b).mean() > 0.05
    check_operation(larger, lambda dy, first: (dy * first, dy * ~first), a, b)
    with pytest.raises(GradientError, match="larger: the gradient of"):
        check_operation(larger, lambda dy, first: (dy, dy * ~first), a, b)


# --- hard to measure


def logarithm(x):
    return np.log(x), x


@pytest.mark.parametrize("size", [5, 2000])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_scales_and_the_ends_of_domains(scale, size):
    x = np.random.default_rng(2).uniform(1, 2, size) * scale
    for error, forward, derivative in (
        (1e-6, logarithm, lambda x: 1 / x),
        (1e-6, lambda x: (1 / x, x), lambda x: -1 / x**2),
        (1e-6, lambda x: (1e-8 * x**2, x), lambda x: 2e-8 * x),
        (1e-6, lambda x: (1e8 * x**2, x), lambda x: 2e8 * x),
        (1e-6, lambda x: (np.sin(1e4 / scale * x), x), lambda x: 1e4 / scale * np.cos(1e4 / scale * x)),
    ):
        assert check_operation(forward, lambda dy, x, d=derivative: (dy * d(x),), x)["x"] <= error
        for mistake in (1.001, 0.0):
            with pytest.raises(GradientError, match="gradient of x is wrong"):
                check_operation(forward, lambda dy, x, d=derivative, m=mistake: (dy * d(x) * m,), x)


@pytest.mark.parametrize("size", [5, 2000])
@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda x: (1e8 + 1e-9 * x, 1e-9 + 0 * x), "smaller than the rounding of values of size"),
        (lambda x: (np.tanh(x.astype("f4")) * 2.3, 2.3 / np.cosh(x) ** 2), "it changes in steps"),
        (lambda x: (np.sin(1e13 * x), 1e13 * np.cos(1e13 * x)), "too close"),
        (
            lambda x: (np.where(x == X[: len(x)], x, np.nan), 1 + 0 * x),
            "not finite at nearby points|smaller than",
        ),
    ],
    ids=["large constant", "float32 inside", "fast sine", "defined here only"],
)
def test_what_can_not_be_measured_is_called_neither_right_nor_wrong(forward, reason, size):
    def wrapped(x):
        y, derivative = forward(x)
        return y.astype(float), derivative

    with pytest.raises(UndecidedError, match=rf"wrapped: .* gradient of x is right: .*({reason})"):
        check_operation(wrapped, lambda dy, derivative: (dy * derivative,), X[:size])


def test_steps_of_the_users_own_are_flat():
    for size in (5, 2000):
        check_operation(lambda x: (np.round(x), None), lambda dy, saved: (0 * dy,), X[:size])
        with pytest.raises(GradientError, match="gradient of x is wrong"):
            check_operation(lambda x: (np.round(x), None), lambda dy, saved: (dy,), X[:size])


# --- what it needs and what it leaves behind


class Halved(Layer):
    """A layer whose pullback is wrong."""

    def __init__(self):
        self.linear = Linear(3, 3)

    def __call__(self, x):
        y, backward = self.linear(x)
        return y, lambda dy: backward(dy) / 2


def test_a_gradient_that_is_zero_everywhere_is_right_where_it_is():
    def forward(x):
        return x**3, (x,)

    def backward(dy, saved):
        return (3 * saved[0] ** 2 * dy,)

    check_operation(forward, backward, np.zeros(3))
    with pytest.raises(GradientError, match="gradient of x"):
        check_operation(forward, lambda dy, saved: (0 * dy,), np.ones(3))
    with pytest.raises(
        TypeError, match="forward_without_saved returned a ndarray; expected the pair y, saved"
    ):
        check_operation(forward_without_saved, backward, np.zeros(3))


def forward_without_saved(x):
    return x**3


def test_float32_is_refused():
    x = draw(2, 3).astype(np.float32)
    with pytest.raises(TypeError, match="softmax: x is a float32 array"):
        check_operation(softmax, softmax_backward, x)
    with pytest.raises(
        TypeError, match=r"gradcheck needs float64: call build\(dtype='float64'\) on the Linear"
    ):
        check_layer(Linear(3, 2).build(), x)
    with pytest.raises(RuntimeError, match=r"this Linear has no memory yet: call build\(\) first"):
        check_layer(Linear(3, 2), draw(2, 3))


def small_gpt():
    return GPT(GPTConfig(vocabulary_size=5, context_length=4, layers=1, heads=1, width=4))


def test_a_model_in_float32_is_refused():
    batch = {"ids": np.zeros((1, 2), int), "targets": np.ones((1, 2), int)}
    with pytest.raises(TypeError, match=r"gradcheck needs float64: call build\(dtype='float64'\) on the GPT"):
        check_model(small_gpt().build(), batch)


def test_parameters_get_their_values_back():
    layer = Halved().build(seed=3, dtype="float64")
    kept = layer.flat.values.copy()
    x = draw(2, 3)
    with pytest.raises(GradientError, match="Halved: the gradient of x"):
        check_layer(layer, x)
    np.testing.assert_array_equal(layer.flat.values, kept)
    with pytest.raises(ValueError, match="last axis"):
        check_layer(layer, draw(2, 4))
    np.testing.assert_array_equal(layer.flat.values, kept)
    check_layer(Linear(3, 2).build(dtype="float64"), x)

    model = small_gpt().build(seed=4, dtype="float64")
    kept = model.flat.values.copy()
    check_model(model, {"ids": np.array([[0, 3]]), "targets": np.array([[3, -100]])})
    np.testing.assert_array_equal(model.flat.values, kept)
    np.testing.assert_array_equal(x, draw(2, 3))


def test_parameters_are_not_checked_at_their_initial_values():
    class GainForgotten(LayerNorm):
        """Right as long as the gain is one."""

        def __call__(self, x):
            y, backward = super().__call__(x)
            return y, lambda dy: backward(dy / self.gain.value)

    with pytest.raises(GradientError, match="GainForgotten: the gradient of x"):
        check_layer(GainForgotten(4).build(dtype="float64"), draw(3, 4))
