"""The first half of a feed-forward layer on the CPU: ``functional.linear_gelu`` in one pass.

GELU is applied to each block of the product while it is in the cache, so the affine map's result is never
stored. GELU's derivative is saved instead: the backward multiplies by it.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import carray

from minitransformer.functional.fusions import GELU
from minitransformer.functional.linear import LinearSaved, check_linear, flatten_rows
from minitransformer.functional.rules import backward_uncast, check_gradient, forward_uncast
from minitransformer.kernels.cpu.compiling import kernel
from minitransformer.kernels.cpu.emitting import LANES
from minitransformer.kernels.cpu.linear import linear_backward, make_contiguous
from minitransformer.kernels.cpu.matrix_product import multiply
from minitransformer.kernels.cpu.records import Layout, address_of, take_task
from minitransformer.kernels.cpu.rows import TASK, choose_workers, load_some, store_some
from minitransformer.kernels.cpu.threads import run


class LinearGeluSaved(NamedTuple):
    """What ``linear_gelu_backward`` needs."""

    slope: Any  # (…, F), the derivative of GELU
    linear: LinearSaved


@forward_uncast
def linear_gelu(x, weight, bias, *, form):
    """Return ``GELU(x · weight + bias)``; as ``functional.linear_gelu``, for float32 arrays of NumPy."""
    check_linear(x, weight, bias)
    if form not in GELU:
        raise KeyError(form)
    y, slope = (np.empty((*x.shape[:-1], weight.shape[1]), np.float32) for _ in range(2))
    multiply(
        flatten_rows(y),
        flatten_rows(x),
        weight,
        bias=make_contiguous(bias),
        gelu=form,
        slope=flatten_rows(slope),
    )
    return y, LinearGeluSaved(slope, LinearSaved(x, weight, bias is not None))


@backward_uncast
def linear_gelu_backward(dy, saved, *, add_to=None):
    """Return ``dx, dweight, dbias``."""
    check_gradient("linear_gelu_backward", dy, saved.slope.shape)
    dy, dh = np.ascontiguousarray(dy), np.empty(dy.shape, np.float32)
    record = ENTRIES(out=address_of(dh), a=address_of(dy), b=address_of(saved.slope), size=dh.size)
    run(multiply_entries, record, 0, choose_workers(dh.size))
    return linear_backward(dh, saved.linear, add_to=add_to)


ENTRIES = Layout("out", "a", "b", "size")


@kernel(ENTRIES, seconds=1)
def multiply_entries(records, worker):
    """Write the products of the entries of ``a`` and ``b`` to ``out``."""
    record = carray(records, (1,))[0]
    first = take_task(record) * TASK
    while first < record.size:
        end = min(first + TASK, record.size)
        for index in range(first, end, LANES):
            place, count = 4 * index, end - index
            product = load_some(record.a + place, count) * load_some(record.b + place, count)
            store_some(record.out + place, product, count)
        first = take_task(record) * TASK
    return 0
