"""A language model's head and loss on the CPU: ``functional.linear_cross_entropy``, some logits at a time.

Logits exist for a block of the vocabulary at a time. The forward keeps for each row the largest logit and the
sum of exponentials relative to it, as the softmax of fused attention does. The backward needs the logits
again: the first blocks are kept, up to ``KEPT_BYTES``, the others are computed anew, which costs a third more
products. So memory grows with N + V, not N · V.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import carray

from minitransformer.functional.cross_entropy import IGNORED, check_targets
from minitransformer.functional.linear import check_linear, flatten_rows
from minitransformer.functional.rules import backward_uncast, forward_uncast
from minitransformer.kernels.cpu.activations import LOG2_E
from minitransformer.kernels.cpu.compiling import kernel
from minitransformer.kernels.cpu.emitting import LANES
from minitransformer.kernels.cpu.linear import make_contiguous
from minitransformer.kernels.cpu.matrix_product import multiply
from minitransformer.kernels.cpu.records import (
    MATRIX,
    Layout,
    address_of,
    find_accumulator,
    locate,
    take_task,
)
from minitransformer.kernels.cpu.rows import load_some, store_some
from minitransformer.kernels.cpu.threads import run, thread_count
from minitransformer.kernels.cpu.vectors import (
    exp2,
    fused,
    keep_first,
    load,
    load_first,
    load_one,
    max_lane,
    maximum,
    splat,
    store_one,
    sum_lanes,
)

KEPT_BYTES = 56 * 2**20  # half of 512 rows of 50257 logits: they save a sixth of the products there
BLOCK = 2**20  # logits of a block: 4 MB
SMALLEST_BLOCK = 256  # columns
TASK_ROWS = 16
LOWEST = -3e38  # below any finite logit; relative to it the exponential of −∞ is 0


class LinearCrossEntropySaved(NamedTuple):
    """What ``linear_cross_entropy_backward`` needs."""

    h: Any  # (…, D)
    table: Any  # (V, D)
    bias: Any  # (V,) or None
    targets: Any  # (N,), 0 where ignored
    counted: Any  # (N,), booleans
    largest: Any  # (N,), the largest logit of each row
    total: Any  # (N,), Σ exp(logit − largest)
    kept: tuple  # the logits (N, block) of the first blocks
    label_smoothing: float


@forward_uncast
def linear_cross_entropy(h, table, bias, *, targets, ignore_index=IGNORED, label_smoothing=0.0):
    """Return the summed cross-entropy; as ``functional.linear_cross_entropy``, for float32 arrays."""
    check_linear(h, table.T, bias)
    logits_shape = *h.shape[:-1], table.shape[0]
    targets, counted = check_targets(logits_shape, targets, ignore_index, label_smoothing)
    rows, classes = targets.size, table.shape[0]
    saved = LinearCrossEntropySaved(
        h,
        table,
        bias,
        targets,
        counted,
        np.full(rows, LOWEST, np.float32),
        np.zeros(rows),
        (),
        label_smoothing,
    )
    kept, of_target, sums = [], np.zeros(rows), np.zeros(rows)
    for part in _blocks(rows, classes):
        logits = _compute_logits(saved, part)
        if 4 * rows * part.stop <= KEPT_BYTES:
            kept.append(logits)
        saved = _add_block(saved, logits)
        (here,) = np.nonzero((targets >= part.start) & (targets < part.stop))
        of_target[here] = logits[here, targets[here] - part.start]
        if label_smoothing:
            sums += logits.sum(axis=1, dtype=float)
    with np.errstate(all="ignore"):  # rows that are ignored may hold anything
        log_total = saved.largest + np.log(saved.total)
        losses = (label_smoothing - 1) * (of_target - log_total)  # (ε − 1) · log p_target
        if label_smoothing:
            losses -= label_smoothing * (sums / classes - log_total)  # −Σ_v q_v log p_v
    total = np.where(counted, losses, 0).sum()
    return np.asarray(total, np.float32), saved._replace(kept=tuple(kept))


@backward_uncast
def linear_cross_entropy_backward(dtotal, saved, *, add_to=None):
    """Return ``dh, dtable, dbias``."""
    h, table, bias = saved.h, saved.table, saved.bias
    h_rows, rows = flatten_rows(h), saved.targets.size
    _, table_owner, bias_owner = add_to or (None, None, None)
    dh, dtable = np.zeros(h.shape, np.float32), find_accumulator(table_owner, table.shape, h, table, bias)
    dbias = None if bias is None else find_accumulator(bias_owner, bias.shape, h, table, bias, dtable)
    scale = saved.counted * np.float64(dtotal)
    with np.errstate(all="ignore"):
        factor = (scale / saved.total).astype(np.float32)
    scale = scale.astype(np.float32)
    blocks = _blocks(rows, table.shape[0])
    dlogits = np.empty((rows, blocks[0].stop if blocks else 0), np.float32)
    for index, part in enumerate(blocks):
        logits = saved.kept[index] if index < len(saved.kept) else _compute_logits(saved, part)
        block = dlogits[:, : part.stop - part.start]
        record = LOGITS(
            logits=locate(logits),
            dlogits=locate(block),
            rows=rows,
            columns=block.shape[1],
            largest=address_of(saved.largest),
            factor=address_of(factor),
            spread=address_of(scale),
            label_smoothing=saved.label_smoothing / table.shape[0],
        )
        _run_on_rows(compute_dlogits, record, rows)  # dtotal · (p − ε/V)
        (here,) = np.nonzero((saved.targets >= part.start) & (saved.targets < part.stop))
        block[here, saved.targets[here] - part.start] -= (1 - saved.label_smoothing) * scale[here]
        multiply(flatten_rows(dh), block, table[part], add=True)
        multiply(dtable[part], block.T, h_rows, add=True)
        if dbias is not None:
            dbias[part] += block.sum(axis=0)
    return dh, dtable, dbias


def _blocks(rows, classes):
    """Return slices of the vocabulary, equally long but for the last."""
    width = max(SMALLEST_BLOCK, BLOCK // max(rows, 1))
    return [slice(start, min(start + width, classes)) for start in range(0, classes, width)]


def _compute_logits(saved, part):
    """Return the logits (N, block) of a part of the vocabulary."""
    logits = np.empty((saved.targets.size, part.stop - part.start), np.float32)
    bias = None if saved.bias is None else make_contiguous(saved.bias[part])
    multiply(logits, flatten_rows(saved.h), saved.table[part].T, bias=bias)
    return logits


def _add_block(saved, logits):
    """Return ``saved`` with ``largest`` and ``total`` of one block more."""
    rows, columns = logits.shape
    largest, total = np.empty((2, rows), np.float32)
    record = LOGITS(
        logits=locate(logits),
        rows=rows,
        columns=columns,
        largest=address_of(largest),
        factor=address_of(total),
    )
    _run_on_rows(find_largest_and_total, record, rows)
    together = np.maximum(saved.largest, largest)
    with np.errstate(invalid="ignore"):
        before, here = (np.exp(one.astype(float) - together) for one in (saved.largest, largest))
    return saved._replace(largest=together, total=saved.total * before + total * here)


LOGITS = Layout(
    *[(name, MATRIX) for name in ("logits", "dlogits")],
    *("rows", "columns"),
    *("largest", "factor", "spread"),  # addresses of a float per row
    ("label_smoothing", np.float64),  # per class
)


def _run_on_rows(kernel, record, rows):
    tasks = -(-rows // TASK_ROWS)
    run(kernel, record, 0, max(1, min(thread_count(), tasks)))


@kernel(LOGITS, seconds=1)
def find_largest_and_total(records, worker):
    """Write the largest logit of each row to ``largest``, and Σ exp(logit − largest) to ``factor``."""
    record = carray(records, (1,))[0]
    first = take_task(record) * TASK_ROWS
    while first < record.rows:
        for row in range(first, min(first + TASK_ROWS, record.rows)):
            logits = record.logits.address + row * record.logits.row_bytes
            whole = record.columns // LANES * LANES
            largest = splat(LOWEST)
            for index in range(0, whole, LANES):
                largest = maximum(load(logits + 4 * index), largest)
            top = max_lane(largest)
            for index in range(whole, record.columns):
                top = max(top, load_one(logits + 4 * index))
            total, unit, offset = splat(0.0), splat(LOG2_E), splat(top)
            for index in range(0, whole, LANES):
                total = total + exp2((load(logits + 4 * index) - offset) * unit)
            for index in range(whole, record.columns, LANES):
                rest = load_first(logits + 4 * index, record.columns - index)
                powers = exp2((rest - offset) * unit)
                total = total + keep_first(powers, record.columns - index)
            store_one(record.largest + 4 * row, top)
            store_one(record.factor + 4 * row, sum_lanes(total))
        first = take_task(record) * TASK_ROWS
    return 0


@kernel(LOGITS, seconds=1)
def compute_dlogits(records, worker):
    """Write exp(logit − largest) · factor − spread · label_smoothing to ``dlogits``."""
    record = carray(records, (1,))[0]
    first = take_task(record) * TASK_ROWS
    while first < record.rows:
        for row in range(first, min(first + TASK_ROWS, record.rows)):
            logits = record.logits.address + row * record.logits.row_bytes
            dlogits = record.dlogits.address + row * record.dlogits.row_bytes
            top, unit = splat(load_one(record.largest + 4 * row)), splat(LOG2_E)
            factor = splat(load_one(record.factor + 4 * row))
            spread = splat(-load_one(record.spread + 4 * row) * record.label_smoothing)
            for index in range(0, record.columns, LANES):
                count = record.columns - index
                power = exp2((load_some(logits + 4 * index, count) - top) * unit)
                store_some(dlogits + 4 * index, fused(power, factor, spread), count)
        first = take_task(record) * TASK_ROWS
    return 0
