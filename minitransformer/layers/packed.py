"""Layers with packed weights, for models that only decode."""

from minitransformer import dispatch
from minitransformer.functional import pack_weight
from minitransformer.layers.basic import Linear, LinearGelu
from minitransformer.parameters import Layer


class PackedLinear(Layer):
    """y = x W + b, or GELU of it, by a copy of the array ``weight`` (D, F) that is packed as ``dtype``.

    ``x`` (…, D) → (…, F), only under ``inference()``. ``bias`` is a parameter (F,) or None, ``gelu`` None,
    ``"exact"`` or ``"tanh"``.
    """

    def __init__(self, weight, bias, dtype, gelu=None):
        self.weight = pack_weight(weight, dtype)
        self.bias = bias
        self.gelu = gelu

    def __call__(self, x):
        if not dispatch.is_inference():
            raise RuntimeError(
                "packed weights have no backward: call a model for decoding under inference(), and train the "
                "one that it was made from"
            )
        bias = None if self.bias is None else self.bias.value

        def backward(dy):
            raise RuntimeError("packed weights have no backward")

        return dispatch.packed_linear(x, bias, weight=self.weight, gelu=self.gelu), backward


def pack_layers(part, dtype):
    """Return ``part``, a layer or what a layer holds, with its linear layers packed.

    Nothing is changed: layers are copied, and share their other parameters with the copies.
    """
    if isinstance(part, Linear | LinearGelu):
        copy = PackedLinear(part.weight.value, part.bias, dtype, getattr(part, "form", None))
        copy.path = part.path
        return copy
    if isinstance(part, Layer):
        copy = object.__new__(type(part))
        vars(copy).update({name: pack_layers(member, dtype) for name, member in vars(part).items()})
        return copy
    if isinstance(part, list):
        return [pack_layers(member, dtype) for member in part]
    if isinstance(part, dict):
        return {name: pack_layers(member, dtype) for name, member in part.items()}
    return part
