"""The first half of a feed-forward layer on the CPU: ``functional.linear_gelu`` in one pass.

GELU is applied to each block of the product while it is in the cache, so the affine map's result is never
stored. GELU's derivative is saved instead: the backward multiplies by it.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import carray

from minitransformer.functional.fusions import GELU
from minitransformer.functional.linear import LinearSaved, check_gradient, check_linear, flatten_rows
from minitransformer.functional.rules import backward_uncast, forward_uncast
from minitransformer.kernels.cpu.compiling import kernel
from minitransformer.kernels.cpu.emitting import LANES, VECTOR_BYTES
from minitransformer.kernels.cpu.linear import linear_backward, make_contiguous
from minitransformer.kernels.cpu.matrix_product import multiply
from minitransformer.kernels.cpu.records import Layout, address_of, take_task
from minitransformer.kernels.cpu.threads import run, thread_count
from minitransformer.kernels.cpu.vectors import load, load_first, store, store_first

TASK = 2**14  # entries that are multiplied per task


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
    run(multiply_entries, record, 0, max(1, min(thread_count(), dh.size // TASK)))
    return linear_backward(dh, saved.linear, add_to=add_to)


ENTRIES = Layout("out", "a", "b", "size")


@kernel(ENTRIES, seconds=1)
def multiply_entries(records, worker):
    """Write the products of the entries of ``a`` and ``b`` to ``out``."""
    record = carray(records, (1,))[0]
    first = take_task(record) * TASK
    while first < record.size:
        end = min(first + TASK, record.size)
        whole = end // LANES * LANES
        for place in range(4 * first, 4 * whole, VECTOR_BYTES):
            store(record.out + place, load(record.a + place) * load(record.b + place))
        if whole < end:
            place, count = 4 * whole, end - whole
            product = load_first(record.a + place, count) * load_first(record.b + place, count)
            store_first(record.out + place, product, count)
        first = take_task(record) * TASK
    return 0
