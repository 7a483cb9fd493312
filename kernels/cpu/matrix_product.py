"""The product of two matrices, on all cores: the panels and blocks around the micro-kernel ``product``.

    out = left · right,   or   out += left · right,   then the epilogue

A task is a rectangle of ``out``, so no two tasks write to the same place and every sum is in the order of
the depth, whoever computes it. For each block of the depth a task packs its part of ``right`` into panels, as
wide as one call of the micro-kernel, and goes through ``left`` by blocks of rows, which stay in the
second-level cache (Goto & van de Geijn, ACM TOMS 34(3), 2008). Of ``left`` only columns and the last tile are
packed: rows are read where they lie.

The epilogue is applied to each block of rows while it is in the cache: a bias, then GELU together with its
derivative, so that its backward is one multiplication and the affine map's result is never stored.
"""

import functools

import numpy as np
from numba import carray

from minitransformer.kernels.cpu.activations import gelu_exact, gelu_tanh
from minitransformer.kernels.cpu.compiling import inline, kernel
from minitransformer.kernels.cpu.emitting import LANES, REGISTERS, VECTOR_BYTES
from minitransformer.kernels.cpu.products import product, transpose
from minitransformer.kernels.cpu.records import (
    MATRIX,
    Layout,
    address_of,
    locate,
    round_up,
    scratch_of,
    take_task,
)
from minitransformer.kernels.cpu.rows import load_some, store_some
from minitransformer.kernels.cpu.threads import run, thread_count
from minitransformer.kernels.cpu.vectors import load, load_first, splat, store, store_first

ROWS, VECTORS = (8, 3) if REGISTERS == 32 else (6, 2)  # of one call of the micro-kernel
PANEL = VECTORS * LANES  # columns
DEPTH_BLOCK = 256  # a panel of it fills half of a first-level cache of 32 KiB
ROW_BLOCK = 96  # rows of ``left`` that are packed at a time
MOST_COLUMNS = 256 // PANEL * PANEL  # of a task; packed, they fill 256 KiB
TASKS_PER_WORKER = 8  # at least, so that all finish at about the same time
WORTH_A_THREAD = 1e6  # multiplications; fewer take no longer than to wake a thread
EXACT, TANH = 1, 2
EPILOGUES = {None: 0, "exact": EXACT, "tanh": TANH}

PRODUCT = Layout(
    *[(name, MATRIX) for name in ("out", "left", "right", "slope")],
    *("rows", "columns", "depth"),
    *("task_rows", "task_columns"),
    "add",  # 1 to add to out
    "bias",  # address of a float per column, or 0
    "gelu",  # one of EPILOGUES
    "sums",  # where to add the sums of the columns of right, or 0
)


def multiply(out, left, right, add=False, bias=None, gelu=None, slope=None, sums=None):
    """Write ``left · right`` (N, F) to ``out``; ``left`` (N, D), ``right`` (D, F), all float32 matrices.

    With ``add`` it is added to ``out``. ``bias`` (F,) is added to every row. With ``gelu`` "exact" or "tanh"
    ``out`` is GELU of that, and its derivative is written to ``slope`` (N, F). The sums of the columns of
    ``right`` (F,) are added to ``sums``. One axis of ``out`` must be contiguous.
    """
    rows, columns = out.shape
    if not out.size:
        return
    if out.strides[1] != 4:
        if out.strides[0] != 4 or bias is not None or gelu or sums is not None:
            raise ValueError("multiply: the rows of out must be contiguous")
        multiply(out.T, right.T, left.T, add)
        return
    left, right = (_make_an_axis_contiguous(matrix) for matrix in (left, right))
    depth = left.shape[1]
    workers = max(1, min(thread_count(), int(rows * columns * max(depth, 1) / WORTH_A_THREAD)))
    task_rows, task_columns = _choose_task(
        rows, columns, left.strides[1] != 4, right.strides[1] != 4, workers
    )
    record = PRODUCT(
        out=locate(out),
        left=locate(left),
        right=locate(right),
        slope=locate(slope),
        rows=rows,
        columns=columns,
        depth=depth,
        task_rows=task_rows,
        task_columns=task_columns,
        add=int(add),
        bias=address_of(bias),
        gelu=EPILOGUES[gelu],
        sums=address_of(sums),
    )
    run(matrix_product, record, _scratch_floats(task_columns), workers)


@functools.lru_cache(1024)
def _choose_task(rows, columns, left_is_transposed, right_is_transposed, workers):
    """Return the rows and columns of a task, those with which all workers together should end first.

    Costs are counted in cycles per step of the depth: LANES · 2 multiplications in one, and what packing
    takes. Each worker gets at least ``TASKS_PER_WORKER`` tasks, if they can be as large as a block of rows by
    two panels.
    """
    left_cycles = 0.4 if left_is_transposed else 0.05  # per row that is packed
    right_cycles = 1.0 if right_is_transposed else 0.3  # per column
    choices = []
    for task_columns in range(PANEL, min(MOST_COLUMNS, round_up(columns, PANEL)) + 1, PANEL):
        parts = -(-columns // task_columns)
        for row_parts in range(1, max(1, min(rows // ROW_BLOCK, 64 * workers)) + 1):
            task_rows = round_up(-(-rows // row_parts), ROWS)
            tasks = parts * row_parts
            packing = left_cycles * task_rows + right_cycles * task_columns
            cycles = task_rows * task_columns / (2 * LANES) + packing
            rounds = -(-tasks // workers)
            few = workers > 1 and rounds < TASKS_PER_WORKER
            choices.append((few, cycles * rounds, -task_columns, task_rows))
    few, _, task_columns, task_rows = min(choices)
    return task_rows, -task_columns


def _make_an_axis_contiguous(matrix):
    """Return ``matrix``, copied unless one of its axes is contiguous."""
    return matrix if 4 in matrix.strides else np.ascontiguousarray(matrix)


def _scratch_floats(task_columns):
    return DEPTH_BLOCK * (round_up(task_columns, PANEL) + round_up(ROW_BLOCK, ROWS)) + ROWS * PANEL


@kernel(PRODUCT, seconds=6)
def matrix_product(records, worker):
    """Compute ``out``, a rectangle per task."""
    record = carray(records, (1,))[0]
    scratch = scratch_of(record, worker)
    across = (record.columns + record.task_columns - 1) // record.task_columns
    down = (record.rows + record.task_rows - 1) // record.task_rows
    task = take_task(record)
    while task < across * down:
        row, column = task // across * record.task_rows, task % across * record.task_columns
        rows = min(record.task_rows, record.rows - row)
        columns = min(record.task_columns, record.columns - column)
        _compute(record, row, rows, column, columns, scratch)
        task = take_task(record)
    return 0


@inline
def _compute(record, row, rows, column, columns, scratch):
    """Compute the rectangle of ``rows`` × ``columns`` at (``row``, ``column``)."""
    left_block = scratch + 4 * DEPTH_BLOCK * round_up(columns, PANEL)
    tile = left_block + 4 * DEPTH_BLOCK * round_up(ROW_BLOCK, ROWS)
    for start in range(0, max(record.depth, 1), DEPTH_BLOCK):
        steps = min(DEPTH_BLOCK, record.depth - start)
        _pack_right(record, start, steps, column, columns, scratch)
        if record.sums and row == 0:
            _add_sums(record.sums + 4 * column, columns, steps, scratch)
        for first in range(row, row + rows, ROW_BLOCK):
            count = min(ROW_BLOCK, row + rows - first)
            packed = _pack_left(record, first, count, start, steps, left_block)
            add = record.add != 0 or start > 0
            out = record.out.address + first * record.out.row_bytes + 4 * column
            _multiply_blocks(out, record.out.row_bytes, count, columns, packed, scratch, steps, tile, add)
            if start + DEPTH_BLOCK >= record.depth:
                _finish(record, first, count, column, columns)


@inline
def _pack_right(record, start, steps, column, columns, block):
    """Copy rows ``start`` … of ``right`` to panels (steps, PANEL), padded with zeros."""
    right = record.right
    origin = right.address + start * right.row_bytes + column * right.column_bytes
    for first in range(0, columns, PANEL):
        panel = block + 4 * first * steps
        count = min(PANEL, columns - first)
        if right.column_bytes == 4:
            _copy(panel, 4 * PANEL, PANEL, origin + 4 * first, right.row_bytes, steps, count)
        else:
            _transpose_rows(panel, steps, origin + first * right.column_bytes, right.column_bytes, count)


@inline
def _pack_left(record, first, count, start, steps, block):
    """Pack ``count`` rows of ``left``; return where they are, and the last tile, which zeros fill up.

    That is the address and row stride of both, and the stride of the depth. Contiguous rows stay where they
    are, but for those of the last tile; contiguous columns are copied. Nothing is transposed.
    """
    left = record.left
    origin = left.address + first * left.row_bytes + start * left.column_bytes
    whole = count // ROWS * ROWS
    if left.column_bytes == 4:
        tail = origin + whole * left.row_bytes
        _copy(block, 4 * DEPTH_BLOCK, steps, tail, left.row_bytes, count - whole, steps)
        for row in range(count - whole, ROWS):
            _copy(block + 4 * DEPTH_BLOCK * row, 0, steps, origin, 0, 1, 0)
        return origin, left.row_bytes, block, 4 * DEPTH_BLOCK, 4
    padded = round_up(count, ROWS)
    _copy(block, 4 * padded, padded, origin, left.column_bytes, steps, count)
    return block, 4, block + 4 * whole, 4, 4 * padded


@inline
def _copy(out, out_row_bytes, width, x, x_row_bytes, rows, count):
    """Copy ``rows`` rows of ``count`` floats; fill each up with zeros to ``width`` floats."""
    whole = count // LANES * LANES
    for row in range(rows):
        target, origin = out + row * out_row_bytes, x + row * x_row_bytes
        for place in range(0, 4 * whole, VECTOR_BYTES):
            store(target + place, load(origin + place))
        for index in range(whole, width, LANES):
            floats = load_first(origin + 4 * index, max(0, count - index))
            if index + LANES <= width:
                store(target + 4 * index, floats)
            else:
                store_first(target + 4 * index, floats, width - index)


@inline
def _transpose_rows(panel, steps, x, x_row_bytes, count):
    """Write ``count`` rows of ``steps`` contiguous floats to the columns of a panel."""
    for step in range(0, steps, LANES):
        for lane in range(0, PANEL, LANES):
            transpose(
                panel + 4 * (step * PANEL + lane),
                4 * PANEL,
                steps - step,
                LANES,
                x + lane * x_row_bytes + 4 * step,
                x_row_bytes,
                max(0, count - lane),
                steps - step,
            )


@inline
def _add_sums(sums, columns, steps, block):
    """Add the sums of the columns of packed panels to ``sums``."""
    for first in range(0, columns, LANES):
        panel = block + 4 * (first // PANEL * PANEL * steps + first % PANEL)
        total = splat(0.0)
        for address in range(panel, panel + 4 * PANEL * steps, 4 * PANEL):
            total = total + load(address)
        count = min(LANES, columns - first)
        store_first(sums + 4 * first, load_first(sums + 4 * first, count) + total, count)


@inline
def _multiply_blocks(out, out_row_bytes, rows, columns, packed, right, steps, tile, add):
    """Multiply packed blocks; tiles that are not whole are computed aside and copied."""
    left, left_row_bytes, tail, tail_row_bytes, step_bytes = packed
    panel_bytes, whole = 4 * PANEL, rows // ROWS * ROWS
    for first in range(0, columns, PANEL):
        panel, width = right + 4 * first * steps, min(PANEL, columns - first)
        for row in range(0, rows, ROWS):
            height = min(ROWS, rows - row)
            target, factors, row_bytes = out + row * out_row_bytes + 4 * first, tail, tail_row_bytes
            if row < whole:
                factors, row_bytes = left + row * left_row_bytes, left_row_bytes
            aside = height < ROWS or width < PANEL
            place, place_bytes = target, out_row_bytes
            if aside:
                place, place_bytes = tile, panel_bytes
                if add:
                    _copy(tile, panel_bytes, PANEL, target, out_row_bytes, height, width)
            if width > LANES:
                product(
                    ROWS,
                    VECTORS,
                    place,
                    place_bytes,
                    factors,
                    row_bytes,
                    step_bytes,
                    panel,
                    panel_bytes,
                    steps,
                    add,
                )
            else:
                product(
                    ROWS,
                    1,
                    place,
                    place_bytes,
                    factors,
                    row_bytes,
                    step_bytes,
                    panel,
                    panel_bytes,
                    steps,
                    add,
                )
            if aside:
                _copy(target, out_row_bytes, width, tile, panel_bytes, height, width)


@inline
def _finish(record, first, count, column, columns):
    """Apply the epilogue to ``count`` rows from ``first`` on."""
    if record.bias == 0 and record.gelu == 0:
        return
    for row in range(first, first + count):
        out = record.out.address + row * record.out.row_bytes + 4 * column
        slope = record.slope.address + row * record.slope.row_bytes + 4 * column
        bias = record.bias + 4 * column if record.bias else 0
        for index in range(0, columns, LANES):
            place, width = 4 * index, columns - index
            y = load_some(out + place, width)
            if bias:
                y = y + load_some(bias + place, width)
            if record.gelu:
                y, derivative = gelu_exact(y) if record.gelu == EXACT else gelu_tanh(y)
                store_some(slope + place, derivative, width)
            store_some(out + place, y, width)
