"""The passes of an optimiser on the CPU: ``functional.adamw`` and ``squared_norm``, each over memory once.

The definition of ``adamw`` makes a dozen passes over each chunk; here every entry of the four buffers is read
once, and three are written. The parts of both do not depend on the number of threads, so neither do the
results.
"""

import math

import numpy as np
from numba import carray

from minitransformer.kernels.cpu.compiling import inline, kernel
from minitransformer.kernels.cpu.records import Layout, address_of, take_task
from minitransformer.kernels.cpu.rows import TASK, choose_workers, load_some, store_some
from minitransformer.kernels.cpu.threads import run
from minitransformer.kernels.cpu.vectors import (
    LANES,
    VECTOR_BYTES,
    fused,
    load,
    splat,
    square_root,
    store_double,
    sum_lanes,
)

SPAN = 2**10  # squares that are added in float32, before their sum is added in float64


def adamw(
    values,
    gradients,
    first_moment,
    second_moment,
    *,
    steps,
    learning_rate,
    betas,
    eps,
    weight_decay,
    gradient_scale=1.0,
):
    """Update ``values`` and both moments in place; as ``functional.adamw``, for float32 arrays of NumPy."""
    beta1, beta2 = betas
    record = UPDATE(
        values=address_of(values),
        gradients=address_of(gradients),
        first_moment=address_of(first_moment),
        second_moment=address_of(second_moment),
        size=values.size,
        gradient_scale=gradient_scale,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        decay_factor=1 - learning_rate * weight_decay,
        first_correction=learning_rate / (1 - beta1**steps),
        second_correction=1 / math.sqrt(1 - beta2**steps),
    )
    run(update_entries, record, 0, choose_workers(values.size))


def squared_norm(gradients):
    """Return Σ g² in float64; as ``functional.squared_norm``, for a float32 array of NumPy."""
    parts = np.empty(-(-gradients.size // TASK), np.float64)
    record = SQUARES(gradients=address_of(gradients), size=gradients.size, parts=address_of(parts))
    run(sum_squares, record, 0, choose_workers(gradients.size))
    return parts.sum()


UPDATE = Layout(
    *("values", "gradients", "first_moment", "second_moment"),  # addresses of (N,)
    "size",
    *[(name, np.float64) for name in ("gradient_scale", "beta1", "beta2", "eps")],
    ("decay_factor", np.float64),  # 1 − η λ
    ("first_correction", np.float64),  # η / (1 − β₁ᵗ)
    ("second_correction", np.float64),  # 1 / √(1 − β₂ᵗ)
)


@kernel(UPDATE, seconds=1)
def update_entries(updates, worker):
    """Write values and moments. A task is TASK entries."""
    update = carray(updates, (1,))[0]
    first = take_task(update) * TASK
    while first < update.size:
        end = min(first + TASK, update.size)
        for n in range(first, end, LANES):
            _update(update, 4 * n, end - n)
        first = take_task(update) * TASK
    return 0


@inline
def _update(update, offset_bytes, count):
    """Update LANES entries, or ``count`` if these are fewer."""
    w_address, m_address, v_address = (
        update.values + offset_bytes,
        update.first_moment + offset_bytes,
        update.second_moment + offset_bytes,
    )
    g = load_some(update.gradients + offset_bytes, count) * splat(update.gradient_scale)
    m = load_some(m_address, count) * splat(update.beta1) + g * splat(1 - update.beta1)
    v = load_some(v_address, count) * splat(update.beta2) + g * g * splat(1 - update.beta2)
    denominator = fused(square_root(v), splat(update.second_correction), splat(update.eps))
    change = m / denominator * splat(update.first_correction)
    w = load_some(w_address, count) * splat(update.decay_factor) - change
    store_some(w_address, w, count)
    store_some(m_address, m, count)
    store_some(v_address, v, count)


SQUARES = Layout("gradients", "size", "parts")  # parts: the address of a float64 per task


@kernel(SQUARES, seconds=1)
def sum_squares(records, worker):
    """Write the sum of the squares of each task, TASK entries, to ``parts``."""
    record = carray(records, (1,))[0]
    task = take_task(record)
    while task * TASK < record.size:
        end = min((task + 1) * TASK, record.size)
        total = 0.0
        for first in range(task * TASK, end, SPAN):
            total += _sum_span(record.gradients + 4 * first, min(SPAN, end - first))
        store_double(record.parts + 8 * task, total)
        task = take_task(record)
    return 0


@inline
def _sum_span(address, count):
    """Return the sum of ``count`` squares: four sums at a time, so that none waits for the one before."""
    first = second = third = fourth = splat(0.0)
    end = address + count // (4 * LANES) * (4 * VECTOR_BYTES)
    for place in range(address, end, 4 * VECTOR_BYTES):
        x = load(place)
        first = fused(x, x, first)
        x = load(place + VECTOR_BYTES)
        second = fused(x, x, second)
        x = load(place + 2 * VECTOR_BYTES)
        third = fused(x, x, third)
        x = load(place + 3 * VECTOR_BYTES)
        fourth = fused(x, x, fourth)
    for place in range(end, address + 4 * count, VECTOR_BYTES):
        x = load_some(place, count - (place - address) // 4)
        first = fused(x, x, first)
    return sum_lanes((first + second) + (third + fourth))
