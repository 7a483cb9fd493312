"""What would invalidate a gradient check is refused: writing to arguments, other types, random forwards."""

import re
from dataclasses import dataclass

import numpy as np
import pytest

from minitransformer.errors import InputError
from minitransformer.functional import Key, causal_mask
from minitransformer.gradcheck import GradientError, UndecidedError, check_layer, check_model, check_operation
from minitransformer.layers import Linear
from minitransformer.parameters import Layer, Parameter, ones

RANDOM = np.random.default_rng(0)


def draw(*shape):
    return RANDOM.normal(size=shape)


def identity(x):
    return x, None


def square(x, **settings):
    return x**2, x


def square_backward(dy, x):
    return (2 * x * dy,)


class Scale(Layer):
    """y = gain · x, with a place for mistakes."""

    def __init__(self, width=4):
        self.gain = Parameter((width,), ones)

    def __call__(self, x, **settings):
        self.before_forward(x, **settings)

        def backward(dy):
            self.before_backward(dy, x, **settings)
            self.gain.gradient[...] += (dy * x).reshape(-1, dy.shape[-1]).sum(axis=0)
            return self.gain.value * dy

        return self.gain.value * x, backward

    def before_forward(self, x, **settings):
        """Do nothing."""

    def before_backward(self, dy, x, **settings):
        """Do nothing."""


class Squares(Layer):
    """A model: the loss is the mean square of gain · batch["x"]."""

    def __init__(self):
        self.gain = Parameter((4,), ones)

    def loss(self, batch, **settings):
        self.before_forward(batch)
        y = self.gain.value * batch["x"]

        def backward(weights):
            self.before_backward(weights, batch)
            self.gain.gradient[...] += weights["squares"] * (2 * y * batch["x"]).sum(axis=0)

        return {"squares": np.square(y).sum()}, backward

    def before_forward(self, batch):
        """Do nothing."""

    def before_backward(self, weights, batch):
        """Do nothing."""


def with_mistake(layer, place, mistake):
    setattr(layer, place, mistake)
    return layer.build(dtype="float64")


def refuses(error, *words):
    return pytest.raises(error, match=".*".join(map(re.escape, words)))


# --- what backward is given is not to be written into


def tripled_in_place(dy, saved):
    dy *= 3
    return (dy,)


def test_an_upstream_gradient_written_into_is_not_the_ruler():
    with refuses(GradientError, "identity: backward wrote into the upstream gradient of y", "dx = 3 * dy"):
        check_operation(identity, tripled_in_place, draw(3, 4))
    with refuses(GradientError, "identity: backward wrote into the upstream gradient of y"):
        check_operation(identity, tripled_in_place, draw(50, 40))


def test_dropout_only_in_backward_and_in_place_is_caught():
    def forward(x, keep):
        return x, keep

    def backward(dy, keep):
        dy *= keep / 0.6
        return (dy,)

    with refuses(GradientError, "backward wrote into the upstream gradient of y"):
        check_operation(forward, backward, draw(3, 4), keep=RANDOM.random((3, 4)) < 0.6)


def test_a_layers_upstream_gradient_written_into_is_caught():
    def triple(dy, x):
        dy *= 3

    with refuses(GradientError, "Scale: backward wrote into the upstream gradient of y"):
        check_layer(with_mistake(Scale(), "before_backward", triple), draw(3, 4))


def test_a_models_weights_written_into_are_caught():
    def triple(weights, batch):
        weights["squares"] *= 3

    with refuses(GradientError, "Squares: backward wrote into", "the weights it was given, those of squares"):
        check_model(with_mistake(Squares(), "before_backward", triple), {"x": draw(3, 4)})


def test_a_second_upstream_gradient_is_watched_too():
    class Pair(Layer):
        def __call__(self, x):
            def backward(dfirst, dsecond):
                dsecond *= 0.5
                return dfirst + dsecond

            return (x + 0.0, 0.5 * x), backward

    with refuses(GradientError, "Pair: backward wrote into the upstream gradient of y[1]"):
        check_layer(Pair().build(dtype="float64"), draw(3, 4))


# --- arguments, settings and parameters stay as they are


def test_a_forward_that_changes_its_input_is_named_and_its_right_gradient_is_not_called_wrong():
    def doubled(x):
        x *= 2
        return x.copy(), None

    x = draw(3, 4)
    kept = x.copy()
    with refuses(GradientError, "doubled: forward changed x;"):
        check_operation(doubled, lambda dy, saved: (2 * dy,), x)
    np.testing.assert_array_equal(x, kept)


def test_a_backward_that_changes_its_input_is_named():
    def backward(dy, x):
        x *= 2
        x *= dy
        return (x,)

    with refuses(GradientError, "square: backward changed x;"):
        check_operation(square, backward, draw(3, 4))


@dataclass
class Options:
    scale: np.ndarray
    name: str = "options"


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"mask": np.ones(4)}, "mask"),
        ({"batch": {"ids": [np.zeros(2, int), np.ones(4)]}}, "batch['ids'][1]"),
        ({"mask": causal_mask(4)._replace(kv_len=np.array([4, 4]))}, "mask.kv_len"),
        ({"options": Options(np.ones(4))}, "options.scale"),
        ({"key": (Key(1), np.ones(3))}, "key[1]"),
    ],
    ids=str,
)
def test_settings_that_change_are_named(settings, path):
    def spoil(settings):
        value = eval(path, {}, settings)
        value[-1] += 1

    def spoiling(x, **settings):
        spoil(settings)
        return square(x)

    with refuses(GradientError, f"spoiling: forward changed {path};"):
        check_operation(spoiling, square_backward, draw(3, 4), **settings)

    def forward(x, **settings):
        return x**2, (x, settings)

    def backward(dy, saved):
        spoil(saved[1])
        return (2 * saved[0] * dy,)

    with refuses(GradientError, f"forward: backward changed {path};"):
        check_operation(forward, backward, draw(3, 4), **settings)


def test_a_setting_that_grows_or_is_replaced_is_named():
    def spoiling(x, seen):
        seen["calls"] = seen.get("calls", 0) + 1
        return square(x)

    with refuses(GradientError, "spoiling: forward changed seen['calls']"):
        check_operation(spoiling, square_backward, draw(3), seen={})


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_layers_parameters_inputs_and_settings_stay_as_they_are(direction):
    def spoil_parameter(*_, **__):
        layer.gain.value[1] += 1

    def spoil_input(*arrays, **_):
        arrays[-1][...] *= 2

    def spoil_setting(*_, mask):
        mask[0] = 7

    for mistake, settings, path in (
        (spoil_parameter, {}, "gain"),
        (spoil_input, {}, "x"),
        (spoil_setting, {"mask": np.zeros(2)}, "mask"),
    ):
        layer = with_mistake(Scale(), f"before_{direction}", mistake)
        with refuses(GradientError, f"Scale: {direction} changed {path};"):
            check_layer(layer, draw(3, 4), **settings)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_models_parameters_and_batch_stay_as_they_are(direction):
    def spoil_parameter(*_):
        model.gain.value[1] += 1

    def spoil_batch(*given):
        given[-1]["x"] *= 2

    for mistake, path in ((spoil_parameter, "gain"), (spoil_batch, "batch['x']")):
        model = with_mistake(Squares(), f"before_{direction}", mistake)
        with refuses(GradientError, f"Squares: {direction} changed {path};"):
            check_model(model, {"x": draw(3, 4)})


def test_a_pullback_that_overwrites_what_was_there_is_caught():
    class Overwriting(Scale):
        def __call__(self, x):
            def backward(dy):
                self.gain.gradient[...] = (dy * x).sum(axis=0)
                return self.gain.value * dy

            return self.gain.value * x, backward

    with refuses(GradientError, "Overwriting: a second backward", "gain", "+= and not ="):
        check_layer(Overwriting().build(dtype="float64"), draw(3, 4))


# --- what may be shared


def test_views_and_buffers_of_its_own_are_no_mistakes():
    check_operation(identity, lambda dy, saved: (dy,), draw(3, 4))
    check_operation(lambda x: (x[::-1].T, None), lambda dy, saved: (dy.T[::-1],), draw(3, 4))
    values, gradients = np.empty(5), np.empty(5)

    def forward(x):
        return np.multiply(x, x, out=values), x

    def backward(dy, x):
        return (np.multiply(2 * x, dy, out=gradients),)

    check_operation(forward, backward, draw(5))
    x = draw(3, 4)
    check_operation(lambda a, b: (a * b, (a, b)), lambda dy, saved: (dy * saved[1], dy * saved[0]), x, x)
    check_layer(Scale().build(dtype="float64"), draw(3, 4), mask=np.ones(3))
    check_model(Squares().build(dtype="float64"), {"x": draw(3, 4)})


def test_a_forward_that_draws_anew_can_not_be_checked():
    random = np.random.default_rng(1)

    def dropped(x):
        keep = random.random(x.shape) < 0.5
        return x * keep, keep

    with refuses(UndecidedError, "dropped gave two different values of y at the same arguments"):
        check_operation(dropped, lambda dy, keep: (dy * keep,), draw(30))


# --- types


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64"])
def test_a_gradient_of_another_type_is_refused(dtype):
    with refuses(GradientError, f"square: the gradient of x is {dtype}; expected float64, the type of x"):
        check_operation(square, lambda dy, x: ((2 * x * dy).astype(dtype),), draw(3, 4))

    class Lossy(Linear):
        def __call__(self, x):
            y, backward = super().__call__(x)
            return y, lambda dy: backward(dy).astype(dtype)

    with refuses(GradientError, f"Lossy: the gradient of x is {dtype}; expected float64"):
        check_layer(Lossy(4, 3).build(dtype="float64"), draw(2, 4))


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (np.arange(1, 5), "an int64 array"),
        (np.arange(1, 5, dtype=np.float32), "a float32 array"),
        (np.arange(1, 5, dtype=np.float16), "a float16 array"),
        (np.arange(1, 5) + 0j, "a complex128 array"),
        (np.array([1.0, 2.0, None, 3.0]), "an object array"),
        ([1.0, 2.0, 3.0, 4.0], "a list"),
        (2.0, "a float"),
        (3, "an int"),
        (np.float64(2.0), "a float64"),
    ],
    ids=str,
)
def test_arguments_of_another_type_are_named_before_anything_is_computed(given, kind):
    def never(x, weight):
        pytest.fail("the forward ran")

    words = f"never: x is a float64 array, weight is {kind};", "np.asarray(weight, np.float64)"
    with refuses(TypeError, *words):
        check_operation(never, never, draw(4), given)


@pytest.mark.parametrize("given", [draw(2, 4).astype(np.float32), [1.0, 2.0], 2.0, draw(4) + 0j], ids=str)
def test_a_layers_inputs_of_another_type_are_named(given):
    class Never(Scale):
        def __call__(self, x):
            pytest.fail("the layer ran")

    with refuses(TypeError, "Never: x is ", "np.asarray(x, np.float64)"):
        check_layer(Never().build(dtype="float64"), given)


def test_integers_to_a_layer_that_returns_a_gradient_of_them_are_named():
    with refuses(TypeError, "Scale: x is an int64 array", "np.asarray(x, np.float64)"):
        check_layer(Scale().build(dtype="float64"), np.arange(4))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_arguments_that_are_not_finite_are_named(value):
    x = draw(3, 4)
    x[1, 2] = value
    with refuses(InputError, f"square: x is {value} at index (1, 2)"):
        check_operation(square, square_backward, x)
    with refuses(InputError, f"Scale: x is {value} at index (1, 2)"):
        check_layer(Scale().build(dtype="float64"), x)


def test_outputs_of_another_type_are_named():
    with refuses(TypeError, "gradcheck needs float64", "returned y as a float32 array"):
        check_operation(lambda x: (x.astype(np.float32), None), lambda dy, saved: (dy,), draw(3))
    with refuses(TypeError, "gradcheck needs float64", "returned y as a float"):
        check_operation(lambda x: (float(x.sum()), x), lambda dy, x: (dy + 0 * x,), draw(3))
    with refuses(InputError, "y is nan at index (0,)"), np.errstate(invalid="ignore"):
        check_operation(lambda x: (np.log(x), x), lambda dy, x: (dy / x,), np.array([-1.0, 2.0]))


def test_arrays_of_all_forms_are_checked():
    strided = draw(4, 6)[::2, ::3]
    strided.flags.writeable = False
    for x in (np.array(3.0), np.zeros((0, 3)), strided, np.asfortranarray(draw(3, 4)), draw(1, 1, 2)):
        assert check_operation(square, square_backward, x)["x"] <= 1e-6
    with refuses(GradientError, "the gradient of x is wrong; at index ()"):
        check_operation(square, lambda dy, x: (x * dy,), np.array(3.0))
    check_operation(
        lambda x: (np.where(np.arange(4) < 2, x, -np.inf), None),
        lambda dy, saved: (dy * (np.arange(4) < 2),),
        draw(3, 4),
    )
