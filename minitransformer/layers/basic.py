"""The simplest layers: one operation and its parameters each."""

from minitransformer import dispatch
from minitransformer.parameters import Layer, Parameter, normal, ones, zeros

DEVIATION = 0.02  # of initial weights, unless a model sets others (GPT-2, BERT)


class Linear(Layer):
    """y = x W + b: ``x`` (…, D) → (…, F). ``weight`` is (D, F), ``bias`` (F,) or None."""

    def __init__(self, in_width, out_width, bias=True):
        self.weight = Parameter((in_width, out_width), normal(DEVIATION))
        self.bias = Parameter((out_width,), zeros) if bias else None

    def __call__(self, x):
        y, call = dispatch.linear(x, self.weight.value, _value(self.bias))

        def backward(dy):
            owners = (None, self.weight.gradient, _gradient(self.bias))
            return dispatch.linear_backward(dy, call, add_to=owners)[0]

        return y, backward


class LinearGelu(Layer):
    """y = GELU(x W + b): ``x`` (…, D) → (…, F). ``form`` is ``"exact"`` or ``"tanh"``."""

    def __init__(self, in_width, out_width, form, bias=True):
        self.weight = Parameter((in_width, out_width), normal(DEVIATION))
        self.bias = Parameter((out_width,), zeros) if bias else None
        self.form = form

    def __call__(self, x):
        y, call = dispatch.linear_gelu(x, self.weight.value, _value(self.bias), form=self.form)

        def backward(dy):
            owners = (None, self.weight.gradient, _gradient(self.bias))
            return dispatch.linear_gelu_backward(dy, call, add_to=owners)[0]

        return y, backward


class Embedding(Layer):
    """A learned row for each id: ``ids`` (…) → (…, D). ``table`` is (V, D)."""

    def __init__(self, count, width):
        self.table = Parameter((count, width), normal(DEVIATION))

    def __call__(self, ids):
        y, call = dispatch.embedding(self.table.value, ids=ids)

        def backward(dy):
            dispatch.embedding_backward(dy, call, add_to=(self.table.gradient,))

        return y, backward


class LearnedPositions(Layer):
    """x + a learned row for each position: ``x`` (B, T, D) → (B, T, D). ``table`` is (P, D)."""

    def __init__(self, count, width):
        self.table = Parameter((count, width), normal(DEVIATION))

    def __call__(self, x, positions):
        y, call = dispatch.add_positions(x, self.table.value, positions=positions)

        def backward(dy):
            return dispatch.add_positions_backward(dy, call, add_to=(None, self.table.gradient))[0]

        return y, backward


class SinusoidalPositions(Layer):
    """x + the sinusoids of the 2017 paper: ``x`` (B, T, D) → (B, T, D). Nothing is learned."""

    def __call__(self, x, positions):
        y, call = dispatch.add_sinusoids(x, positions=positions)

        def backward(dy):
            return dispatch.add_sinusoids_backward(dy, call)[0]

        return y, backward


class LayerNorm(Layer):
    """Layer normalisation over the last axis: ``x`` (…, D) → (…, D)."""

    def __init__(self, width, bias=True, eps=1e-5):
        self.gain = Parameter((width,), ones)
        self.bias = Parameter((width,), zeros) if bias else None
        self.eps = eps

    def __call__(self, x):
        y, call = dispatch.layer_norm(x, self.gain.value, _value(self.bias), eps=self.eps)

        def backward(dy):
            owners = (None, self.gain.gradient, _gradient(self.bias))
            return dispatch.layer_norm_backward(dy, call, add_to=owners)[0]

        return y, backward


class AddLayerNorm(Layer):
    """layer_norm(x + residual), the end of a post-norm sublayer: twice (…, D) → (…, D)."""

    def __init__(self, width, bias=True, eps=1e-5):
        self.gain = Parameter((width,), ones)
        self.bias = Parameter((width,), zeros) if bias else None
        self.eps = eps

    def __call__(self, x, residual):
        y, call = dispatch.add_layer_norm(x, residual, self.gain.value, _value(self.bias), eps=self.eps)

        def backward(dy):
            owners = (None, None, self.gain.gradient, _gradient(self.bias))
            dx, dresidual, _, _ = dispatch.add_layer_norm_backward(dy, call, add_to=owners)
            return dx, dresidual

        return y, backward


class Dropout(Layer):
    """Dropout in training, the identity in evaluation (``key`` None): (…, D) → (…, D)."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, x, key=None):
        if key is None or self.rate == 0:
            return x, lambda dy: dy
        y, call = dispatch.dropout(x, rate=self.rate, key=key)

        def backward(dy):
            return dispatch.dropout_backward(dy, call)[0]

        return y, backward


class Relu(Layer):
    """max(x, 0): (…) → (…)."""

    def __call__(self, x):
        y, call = dispatch.relu(x)

        def backward(dy):
            return dispatch.relu_backward(dy, call)[0]

        return y, backward


def _value(parameter):
    return None if parameter is None else parameter.value


def _gradient(parameter):
    return None if parameter is None else parameter.gradient
