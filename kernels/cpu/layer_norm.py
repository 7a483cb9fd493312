"""Layer normalisation on the CPU: ``functional.layer_norm`` and ``add_layer_norm``, one pass each way.

A row is in the cache while its mean, then its variance, then its result are computed. x̂ is never stored: the
backward computes it again from x, mean and r. Nor is the sum of ``add_layer_norm``: both terms are saved, and
added again. The backward computes dx, dgain and dbias together.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import carray

from minitransformer.functional.fusions import check_add_layer_norm
from minitransformer.functional.layer_norm import check_layer_norm
from minitransformer.functional.rules import backward_uncast, check_gradient, forward_uncast
from minitransformer.kernels.cpu.compiling import inline, kernel
from minitransformer.kernels.cpu.records import MATRIX, Layout, address_of, locate, round_up, take_task
from minitransformer.kernels.cpu.rows import as_rows, choose_workers, load_some, rows_per_task, store_some
from minitransformer.kernels.cpu.threads import run
from minitransformer.kernels.cpu.vectors import (
    LANES,
    VECTOR_BYTES,
    fused,
    lane_numbers,
    load,
    load_one,
    splat,
    store,
    store_one,
    sum_lanes,
    where,
    words,
)

MOST_SUMS = 32  # parts into which the sums over all rows are split, for any number of threads
ROWS_PER_SUM = 16  # at least


class Saved(NamedTuple):
    """What the backward passes need; ``residual`` is None for ``layer_norm``."""

    x: Any  # (…, D)
    residual: Any  # (…, D) or None
    gain: Any  # (D,)
    mean: Any  # (N,)
    r: Any  # (N,)
    has_bias: bool


@forward_uncast
def layer_norm(x, gain, bias, *, eps=1e-5):
    """Normalise every row, then scale and shift it; as ``functional.layer_norm``, for float32 in NumPy."""
    check_layer_norm(x, gain, bias)
    return _normalise(x, None, gain, bias, eps)


@forward_uncast
def add_layer_norm(x, residual, gain, bias, *, eps=1e-5):
    """Return ``layer_norm(x + residual)``; as ``functional.add_layer_norm``, for float32 in NumPy."""
    check_add_layer_norm(x, residual)
    check_layer_norm(x, gain, bias)
    return _normalise(x, residual, gain, bias, eps)


@backward_uncast
def layer_norm_backward(dy, saved):
    """Return ``dx, dgain, dbias``; ``dbias`` is None where there was no bias."""
    check_gradient("layer_norm_backward", dy, saved.x.shape)
    return _differentiate(dy, saved)


@backward_uncast
def add_layer_norm_backward(dy, saved):
    """Return ``dx, dresidual, dgain, dbias``."""
    check_gradient("add_layer_norm_backward", dy, saved.x.shape)
    dsum, dgain, dbias = _differentiate(dy, saved)
    return dsum, dsum, dgain, dbias


def _normalise(x, residual, gain, bias, eps):
    """Return ``y`` and what is saved."""
    y = np.empty(x.shape, x.dtype)
    mean, r = np.empty((2, math.prod(x.shape[:-1])), x.dtype)
    saved = Saved(x, residual, gain, mean, r, bias is not None)
    bias = np.zeros_like(gain) if bias is None else np.ascontiguousarray(bias)
    task_rows = rows_per_task(x.shape[-1])
    _run(norm_forward, saved, y=address_of(y), bias=address_of(bias), eps=eps, task_rows=task_rows)
    return y, saved


def _differentiate(dy, saved):
    """Return the gradients at the sum, gain and bias; those of the rows of a part are added one by one."""
    dx = np.empty(saved.x.shape, saved.x.dtype)
    rows, width = saved.mean.size, saved.x.shape[-1]
    task_rows = max(ROWS_PER_SUM, -(-rows // MOST_SUMS))
    sums = np.empty((-(-rows // task_rows), 2, round_up(width, LANES)), dx.dtype)
    dy = as_rows(dy)
    _run(norm_backward, saved, dy=locate(dy), dx=address_of(dx), sums=address_of(sums), task_rows=task_rows)
    dgain, dbias = sums.sum(axis=0)[:, :width]
    return dx, dgain, dbias if saved.has_bias else None


def _run(entry, saved, **fields):
    x = as_rows(saved.x)
    residual = None if saved.residual is None else as_rows(saved.residual)
    gain = np.ascontiguousarray(saved.gain)
    rows, width = x.shape
    record = NORM(
        x=locate(x),
        residual=locate(residual),
        gain=address_of(gain),
        mean=address_of(saved.mean),
        r=address_of(saved.r),
        rows=rows,
        width=width,
        **fields,
    )
    run(entry, record, 0, choose_workers(x.size))


NORM = Layout(
    *[(name, MATRIX) for name in ("x", "residual", "dy")],  # (N, D), rows contiguous
    *("y", "dx"),  # addresses of (N, D), contiguous
    *("gain", "bias"),  # of (D,)
    *("mean", "r"),  # of (N,)
    "sums",  # of (tasks, 2, D rounded up to LANES): dgain and dbias of the rows of each task
    *("rows", "width", "task_rows"),
    ("eps", np.float64),
)


@kernel(NORM, seconds=1)
def norm_forward(norms, worker):
    """Write ``y``, ``mean`` and ``r``. A task is ``task_rows`` rows."""
    norm = carray(norms, (1,))[0]
    first = take_task(norm) * norm.task_rows
    while first < norm.rows:
        for n in range(first, min(first + norm.task_rows, norm.rows)):
            _normalise_row(norm, n, norm.y + 4 * n * norm.width)
        first = take_task(norm) * norm.task_rows
    return 0


@inline
def _normalise_row(norm, n, y):
    width, x = norm.width, _find_row(norm, n, y)
    mean = _sum(x, width) / width
    r = 1 / math.sqrt(_sum_squares(x, width, mean) / width + norm.eps)
    store_one(norm.mean + 4 * n, mean)
    store_one(norm.r + 4 * n, r)
    for d in range(0, width, LANES):
        count = width - d
        x_hat = _deviation(x + 4 * d, count, mean) * splat(r)
        gain, bias = load_some(norm.gain + 4 * d, count), load_some(norm.bias + 4 * d, count)
        store_some(y + 4 * d, fused(gain, x_hat, bias), count)


@inline
def _sum(x, width):
    """Return the sum of a row: four sums at a time, so that none waits for the one before."""
    first = second = third = fourth = splat(0.0)
    end = width // (4 * LANES) * (4 * LANES)
    for address in range(x, x + 4 * end, 4 * VECTOR_BYTES):
        first = first + load(address)
        second = second + load(address + VECTOR_BYTES)
        third = third + load(address + 2 * VECTOR_BYTES)
        fourth = fourth + load(address + 3 * VECTOR_BYTES)
    for d in range(end, width, LANES):
        first = first + load_some(x + 4 * d, width - d)
    return sum_lanes((first + second) + (third + fourth))


@inline
def _sum_squares(x, width, mean):
    """Return the sum of the squared deviations from ``mean``, as ``_sum`` does."""
    first = second = third = fourth = splat(0.0)
    end, center = width // (4 * LANES) * (4 * LANES), splat(mean)
    for address in range(x, x + 4 * end, 4 * VECTOR_BYTES):
        deviation = load(address) - center
        first = fused(deviation, deviation, first)
        deviation = load(address + VECTOR_BYTES) - center
        second = fused(deviation, deviation, second)
        deviation = load(address + 2 * VECTOR_BYTES) - center
        third = fused(deviation, deviation, third)
        deviation = load(address + 3 * VECTOR_BYTES) - center
        fourth = fused(deviation, deviation, fourth)
    for d in range(end, width, LANES):
        deviation = _deviation(x + 4 * d, width - d, mean)
        first = fused(deviation, deviation, first)
    return sum_lanes((first + second) + (third + fourth))


@kernel(NORM, seconds=1)
def norm_backward(norms, worker):
    """Write ``dx`` and ``sums``. A task is ``task_rows`` rows."""
    norm = carray(norms, (1,))[0]
    row_bytes = 4 * round_up(norm.width, LANES)
    task = take_task(norm)
    while task * norm.task_rows < norm.rows:
        dgain = norm.sums + 2 * task * row_bytes
        dbias = dgain + row_bytes
        for address in range(dgain, dbias + row_bytes, VECTOR_BYTES):
            store(address, splat(0.0))
        first = task * norm.task_rows
        for n in range(first, min(first + norm.task_rows, norm.rows)):
            _differentiate_row(norm, n, norm.dx + 4 * n * norm.width, dgain, dbias)
        task = take_task(norm)
    return 0


@inline
def _differentiate_row(norm, n, dx, dgain, dbias):
    width, x, dy = norm.width, _find_row(norm, n, dx), norm.dy.address + n * norm.dy.row_bytes
    mean, r = load_one(norm.mean + 4 * n), load_one(norm.r + 4 * n)
    total_g = total_g_x_hat = splat(0.0)
    for d in range(0, width, LANES):
        count = width - d
        x_hat = _deviation(x + 4 * d, count, mean) * splat(r)
        upstream = load_some(dy + 4 * d, count)
        store(dgain + 4 * d, fused(upstream, x_hat, load(dgain + 4 * d)))
        store(dbias + 4 * d, load(dbias + 4 * d) + upstream)
        g = upstream * load_some(norm.gain + 4 * d, count)
        total_g = total_g + g
        total_g_x_hat = fused(g, x_hat, total_g_x_hat)
    mean_g, mean_g_x_hat = splat(sum_lanes(total_g) / width), splat(sum_lanes(total_g_x_hat) / width)
    for d in range(0, width, LANES):
        count = width - d
        x_hat = _deviation(x + 4 * d, count, mean) * splat(r)
        g = load_some(dy + 4 * d, count) * load_some(norm.gain + 4 * d, count)
        store_some(dx + 4 * d, (g - mean_g - x_hat * mean_g_x_hat) * splat(r), count)


@inline
def _find_row(norm, n, scratch):
    """Return the address of row n of x, or of its sum with the residual, which is written to ``scratch``."""
    x, residual = norm.x.address + n * norm.x.row_bytes, norm.residual.address
    if residual == 0:
        return x
    residual += n * norm.residual.row_bytes
    for d in range(0, norm.width, LANES):
        count = norm.width - d
        total = load_some(x + 4 * d, count) + load_some(residual + 4 * d, count)
        store_some(scratch + 4 * d, total, count)
    return scratch


@inline
def _deviation(x, count, mean):
    """Return LANES entries of a row less their mean, and zeros beyond its end."""
    if count >= LANES:
        return load(x) - splat(mean)
    return where(words(count) > lane_numbers(), load_some(x, count) - splat(mean), splat(0.0))
