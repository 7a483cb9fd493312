"""The affine map on the CPU: ``functional.linear`` by ``matrix_product``, on the pool that all kernels use.

The bias is added while a result is in the cache. In the backward dweight is added where the gradient lies,
and dbias is summed from dy while dy is packed for that product.
"""

import numpy as np

from minitransformer.functional.linear import LinearSaved, check_linear, flatten_rows
from minitransformer.functional.rules import backward_uncast, forward_uncast
from minitransformer.kernels.cpu.matrix_product import multiply


@forward_uncast
def linear(x, weight, bias):
    """Return ``x · weight + bias``; as ``functional.linear``, for float32 arrays of NumPy."""
    check_linear(x, weight, bias)
    y = np.empty((*x.shape[:-1], weight.shape[1]), np.float32)
    multiply(flatten_rows(y), flatten_rows(x), weight, bias=make_contiguous(bias))
    return y, LinearSaved(x, weight, bias is not None)


@backward_uncast
def linear_backward(dy, saved, *, add_to=None):
    """Return ``dx, dweight, dbias``; ``dbias`` is None where there was no bias."""
    x, weight, has_bias = saved
    dy_rows = flatten_rows(dy)
    dx = np.empty(x.shape, np.float32)
    multiply(flatten_rows(dx), dy_rows, weight.T)
    _, dweight_owner, dbias_owner = add_to or (None, None, None)
    dweight = find_accumulator(dweight_owner, weight.shape)
    dbias = find_accumulator(dbias_owner, weight.shape[1:]) if has_bias else None
    multiply(dweight, flatten_rows(x).T, dy_rows, add=True, sums=dbias)
    return dx, dweight, dbias


def make_contiguous(vector):
    """Return ``vector``, copied unless it is contiguous; None for None."""
    return None if vector is None else np.ascontiguousarray(vector)


def find_accumulator(owner, shape):
    """Return ``owner`` if a kernel can add a gradient of ``shape`` to it, or else zeros."""
    usable = (
        isinstance(owner, np.ndarray)
        and (owner.dtype, owner.shape) == (np.float32, shape)
        and owner.itemsize in owner.strides
        and owner.flags.writeable
    )
    return owner if usable else np.zeros(shape, np.float32)
