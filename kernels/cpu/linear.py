"""The affine map on the CPU: ``functional.linear`` by ``matrix_product``, on the pool that all kernels use.

The bias is added while a result is in the cache. In the backward dweight is added where the gradient lies,
and dbias is summed from dy while dy is packed for that product.
"""

import numpy as np

from minitransformer.functional.linear import LinearSaved, check_linear, flatten_rows
from minitransformer.functional.rules import backward_uncast, check_gradient, forward_uncast
from minitransformer.kernels.cpu.matrix_product import multiply
from minitransformer.kernels.cpu.records import find_accumulator


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
    check_gradient("linear_backward", dy, (*x.shape[:-1], weight.shape[1]))
    dy_rows = flatten_rows(dy)
    dx = np.empty(x.shape, np.float32)
    multiply(flatten_rows(dx), dy_rows, weight.T)
    _, dweight_owner, dbias_owner = add_to or (None, None, None)
    dbias = find_accumulator(dbias_owner, weight.shape[1:], x, dy) if has_bias else None
    dweight = find_accumulator(dweight_owner, weight.shape, x, dy, dbias)
    if dbias is not None and dweight.strides[1] != 4:  # then rows of dy are not summed while they are packed
        dbias += dy_rows.sum(axis=0)
        multiply(dweight, flatten_rows(x).T, dy_rows, add=True)
    else:
        multiply(dweight, flatten_rows(x).T, dy_rows, add=True, sums=dbias)
    return dx, dweight, dbias


def make_contiguous(vector):
    """Return ``vector``, copied unless it is contiguous; None for None."""
    return None if vector is None else np.ascontiguousarray(vector)
