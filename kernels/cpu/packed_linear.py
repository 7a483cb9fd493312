"""The affine map by packed weights on the CPU, ``functional.packed_linear``: it reads each weight once.

The 16 outputs of a panel are lanes: at each step of the depth a number of x, broadcast to all lanes, is
multiplied by one or more vectors of weights. Up to X_ROWS rows of x share what was loaded; the next rows
find the panel in the cache. For few rows bfloat16 and int8 become float32 on their way to the multiplier; for
many, a panel is converted once, to scratch memory. Instructions that multiply these types, which some
processors have, are not used: they would round x.
"""

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from minitransformer.functional.packed_linear import (
    PACKED_TYPES,
    PANEL_OUTPUTS,
    STORED,
    check_packed_linear,
)
from minitransformer.functional.rules import find_common_type
from minitransformer.kernels.cpu.activations import gelu_exact, gelu_tanh
from minitransformer.kernels.cpu.compiling import inline, kernel
from minitransformer.kernels.cpu.emitting import (
    FLOAT,
    LANES,
    REGISTERS,
    VECTOR_BYTES,
    broadcast,
    load_at,
    load_bfloat16,
    load_int8,
    multiply_add,
    store_at,
)
from minitransformer.kernels.cpu.matrix_product import EPILOGUES, EXACT
from minitransformer.kernels.cpu.records import MATRIX, Layout, address_of, locate, scratch_of, take_task
from minitransformer.kernels.cpu.threads import run, thread_count
from minitransformer.kernels.cpu.vectors import load, load_first, store_first

LOADS = {"float32": load_at, "bfloat16": load_bfloat16, "int8": load_int8}
SIZES = {name: np.dtype(stored).itemsize for name, stored in STORED.items()}
FLOAT32 = PACKED_TYPES.index("float32")
X_ROWS = min(8, REGISTERS // 2 // (PANEL_OUTPUTS // LANES))  # their sums fill half of the registers
SUMS = 8  # independent chains of additions: as many as hide the latency of one
MANY_ROWS = 4 * X_ROWS  # from here on a panel is converted to float32 beforehand
TASK_BYTES = 2**16  # of weights that a worker takes at a time, and reads for each block of rows
WORTH_A_THREAD = 2**17  # bytes of weights to read; less takes no longer than to wake a thread

PROBLEM = Layout(
    *(("x", MATRIX), ("y", MATRIX)),
    *("panels", "panel_bytes", "kind", "scales", "bias", "gelu"),
    *("rows", "depth", "outputs", "task_outputs"),
)
"""The arguments: ``kind`` is the index of the weights' type in PACKED_TYPES, ``gelu`` one of EPILOGUES."""


def packed_linear(x, bias, *, weight, gelu=None):
    """Return ``y = x · weight + bias``, or GELU of it: ``functional.packed_linear``, for float32."""
    find_common_type("packed_linear", ("x", "bias"), (x, bias))
    check_packed_linear(x, bias, weight)
    rows = np.ascontiguousarray(x.reshape(-1, x.shape[-1]))
    y = np.empty((len(rows), weight.shape[1]), x.dtype)
    if y.size:
        _multiply(rows, None if bias is None else np.ascontiguousarray(bias), weight, gelu, y)
    return y.reshape(*x.shape[:-1], weight.shape[1])


def _multiply(x, bias, weight, gelu, y):
    """Write ``y`` (N, F) for ``x`` (N, D)."""
    panel_bytes = weight.panels.strides[0]
    blocks = -(-len(x) // X_ROWS)
    problem = PROBLEM(
        x=locate(x),
        y=locate(y),
        panels=address_of(weight.panels),
        panel_bytes=panel_bytes,
        kind=PACKED_TYPES.index(weight.dtype),
        scales=address_of(weight.scales),
        bias=address_of(bias),
        gelu=EPILOGUES[gelu],
        rows=len(x),
        depth=x.shape[1],
        outputs=y.shape[1],
        task_outputs=PANEL_OUTPUTS * max(1, TASK_BYTES // max(1, panel_bytes * blocks)),
    )
    workers = min(thread_count(), 1 + weight.panels.nbytes * blocks // WORTH_A_THREAD)
    run(multiply_panels, problem, (X_ROWS + x.shape[1]) * PANEL_OUTPUTS, workers)


@kernel(PROBLEM, seconds=3)
def multiply_panels(problems, worker):
    """Compute ``y``. A task is all rows, and ``task_outputs`` outputs."""
    problem = carray(problems, (1,))[0]
    tile = scratch_of(problem, worker)
    converted = tile + 4 * X_ROWS * PANEL_OUTPUTS
    start = take_task(problem) * problem.task_outputs
    while start < problem.outputs:
        for output in range(start, min(start + problem.task_outputs, problem.outputs), PANEL_OUTPUTS):
            panel, kind = problem.panels + output // PANEL_OUTPUTS * problem.panel_bytes, problem.kind
            if kind != FLOAT32 and problem.rows >= MANY_ROWS:
                convert_panel(converted, panel, kind, problem.depth)
                panel, kind = converted, FLOAT32
            _multiply_panel(problem, output, panel, kind, tile)
        start = take_task(problem) * problem.task_outputs
    return 0


@inline
def _multiply_panel(problem, output, panel, kind, tile):
    """Compute the outputs from ``output`` on that one panel has, of all rows."""
    row = 0
    while row < problem.rows:
        x, x_row_bytes = problem.x.address + row * problem.x.row_bytes, problem.x.row_bytes
        if problem.rows - row >= X_ROWS:
            rows = X_ROWS
            product_with_panel(X_ROWS, tile, x, x_row_bytes, panel, kind, problem.depth)
        elif problem.rows - row >= 2:
            rows = 2
            product_with_panel(2, tile, x, x_row_bytes, panel, kind, problem.depth)
        else:
            rows = 1
            product_with_panel(1, tile, x, x_row_bytes, panel, kind, problem.depth)
        for r in range(rows):
            y = problem.y.address + (row + r) * problem.y.row_bytes + 4 * output
            _finish(problem, output, tile + 4 * PANEL_OUTPUTS * r, y)
        row += rows


@inline
def _finish(problem, output, sums, y):
    """Write the sums of a row to ``y``, times the scales, plus the bias, and GELU of that."""
    for lane in range(0, min(PANEL_OUTPUTS, problem.outputs - output), LANES):
        count, total = problem.outputs - output - lane, load(sums + 4 * lane)
        if problem.scales:
            total = total * load_first(problem.scales + 4 * (output + lane), count)
        if problem.bias:
            total = total + load_first(problem.bias + 4 * (output + lane), count)
        if problem.gelu:
            total, _ = gelu_exact(total) if problem.gelu == EXACT else gelu_tanh(total)
        store_first(y + 4 * lane, total, count)


@intrinsic(prefer_literal=True)
def product_with_panel(typingctx, rows, tile, x, x_row_bytes, panel, kind, depth):
    """Write the products of ``rows`` rows of x with a panel, (rows, PANEL_OUTPUTS), to ``tile``.

    Few rows are summed in several parts, by steps of the depth, which are added at the end.
    """
    row_count, vectors = rows.literal_value, PANEL_OUTPUTS // LANES
    parts = max(1, SUMS // (row_count * vectors))

    def emit(context, builder, sig, args):
        _, tile, x, x_row_bytes, panel, kind, depth = args
        zeros = ir.Constant(ir.VectorType(FLOAT, LANES), [0.0] * LANES)
        constant = lambda number: ir.Constant(x.type, number)  # noqa: E731
        rows = [builder.add(x, builder.mul(constant(r), x_row_bytes)) for r in range(row_count)]
        sums = [
            [[cgutils.alloca_once_value(builder, zeros) for _ in range(vectors)] for _ in rows]
            for _ in range(parts)
        ]

        def add_step(step, part, load_weights, size):
            """Add step ``step`` of the depth to the sums of ``part``."""
            weights = builder.add(panel, builder.mul(step, constant(PANEL_OUTPUTS * size)))
            offsets = [constant(c * LANES * size) for c in range(vectors)]
            factors = [load_weights(builder, builder.add(weights, offset)) for offset in offsets]
            for row, row_sums in zip(rows, sums[part], strict=True):
                place = builder.add(row, builder.mul(step, constant(4)))
                one = broadcast(builder, load_at(builder, place, FLOAT))
                for total, factor in zip(row_sums, factors, strict=True):
                    builder.store(multiply_add(builder, one, factor, builder.load(total)), total)

        for number, (name, load_weights) in enumerate(LOADS.items()):
            size = SIZES[name]
            with builder.if_then(builder.icmp_signed("==", kind, constant(number))):
                whole = builder.sdiv(depth, constant(parts))
                with cgutils.for_range(builder, whole) as loop:
                    first = builder.mul(loop.index, constant(parts))
                    for part in range(parts):
                        add_step(builder.add(first, constant(part)), part, load_weights, size)
                if parts > 1:
                    done = builder.mul(whole, constant(parts))
                    with cgutils.for_range(builder, builder.sub(depth, done)) as loop:
                        add_step(builder.add(done, loop.index), 0, load_weights, size)

        for r in range(row_count):
            for c in range(vectors):
                total, *others = (builder.load(part[r][c]) for part in sums)
                for other in others:
                    total = builder.fadd(total, other)
                store_at(
                    builder, total, builder.add(tile, constant(4 * PANEL_OUTPUTS * r + VECTOR_BYTES * c))
                )
        return context.get_dummy_value()

    return types.void(rows, *[types.int64] * 6), emit


@intrinsic
def convert_panel(typingctx, out, panel, kind, depth):
    """Write a panel of ``kind`` to ``out``, as float32."""

    def emit(context, builder, sig, args):
        out, panel, kind, depth = args
        constant = lambda number: ir.Constant(out.type, number)  # noqa: E731
        for number, (name, load_weights) in enumerate(LOADS.items()):
            with (
                builder.if_then(builder.icmp_signed("==", kind, constant(number))),
                cgutils.for_range(builder, builder.mul(depth, constant(PANEL_OUTPUTS // LANES))) as loop,
            ):
                place = builder.add(panel, builder.mul(loop.index, constant(LANES * SIZES[name])))
                floats = load_weights(builder, place)
                store_at(builder, floats, builder.add(out, builder.mul(loop.index, constant(VECTOR_BYTES))))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), emit
