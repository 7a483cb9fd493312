"""The micro-kernel of which every matrix product here is composed, and the transposition of a square.

``product`` computes a tile of results, rows of vectors, which stay in registers during the summation:

    out[r, :] = Σ_t left[r, t] · right[t, :]

It reads single floats of ``left``, each broadcast to all lanes, so ``left`` may have any strides, and vectors
of ``right``. With 32 registers, 8 rows × 2 vectors are 16 independent sums, enough to hide the latency of
the multiplier, for 10 loads; with 16 registers, 4 × 2 fit.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from minitransformer.kernels.cpu.emitting import (
    FLOAT,
    LANES,
    REGISTERS,
    VECTOR_BYTES,
    broadcast,
    first_lanes,
    load_at,
    masked_load,
    masked_store,
    multiply_add,
    store_at,
)

ROWS = 8 if REGISTERS == 32 else 4


@intrinsic(prefer_literal=True)
def product(
    typingctx,
    rows,
    vectors,
    out,
    out_row_bytes,
    left,
    left_row_bytes,
    left_step_bytes,
    right,
    right_step_bytes,
    depth,
    start,
):
    """Compute one tile, ``rows`` × (``vectors`` · LANES), over ``depth`` steps.

    The sums start at zero if ``start`` is None. If it is a boolean, they start at ``out`` where it is true.
    Otherwise it is the address of one factor per column, and the sums start at ``out`` times these.
    """
    row_count, vector_count = rows.literal_value, vectors.literal_value

    def emit(context, builder, sig, args):
        (
            *_,
            out,
            out_row_bytes,
            left,
            left_row_bytes,
            left_step_bytes,
            right,
            right_step_bytes,
            depth,
            start,
        ) = args
        zeros = ir.Constant(ir.VectorType(FLOAT, LANES), [0.0] * LANES)

        def column(base, number):
            return builder.add(base, ir.Constant(base.type, number * VECTOR_BYTES))

        row_addresses, out_addresses = [], []
        for r in range(row_count):
            number = ir.Constant(out.type, r)
            row_addresses.append(builder.add(left, builder.mul(number, left_row_bytes)))
            out_addresses.append(builder.add(out, builder.mul(number, out_row_bytes)))
        places = [column(address, c) for address in out_addresses for c in range(vector_count)]

        sums = [cgutils.alloca_once_value(builder, zeros) for _ in places]
        if isinstance(sig.args[-1], types.Boolean):
            with builder.if_then(start):
                for total, place in zip(sums, places, strict=True):
                    builder.store(load_at(builder, place), total)
        elif not isinstance(sig.args[-1], types.NoneType):
            factors = [load_at(builder, column(start, c)) for c in range(vector_count)]
            for index, (total, place) in enumerate(zip(sums, places, strict=True)):
                factor = factors[index % vector_count]
                builder.store(builder.fmul(load_at(builder, place), factor), total)

        with cgutils.for_range(builder, depth) as loop:
            across = builder.mul(loop.index, left_step_bytes)
            down = builder.add(right, builder.mul(loop.index, right_step_bytes))
            factors = [load_at(builder, column(down, c)) for c in range(vector_count)]
            for r, address in enumerate(row_addresses):
                one = broadcast(builder, load_at(builder, builder.add(address, across), FLOAT))
                for c, factor in enumerate(factors):
                    total = sums[r * vector_count + c]
                    builder.store(multiply_add(builder, one, factor, builder.load(total)), total)

        for total, place in zip(sums, places, strict=True):
            store_at(builder, builder.load(total), place)
        return context.get_dummy_value()

    return types.void(rows, vectors, *[types.int64] * 8, start), emit


@intrinsic
def transpose(typingctx, out, out_row_bytes, out_rows, out_columns, x, x_row_bytes, x_rows, x_columns):
    """Write the transpose of the square of LANES × LANES floats at ``x`` to ``out``.

    Only the first ``x_rows`` and ``x_columns`` of ``x`` are read, the others are zeros; only the first
    ``out_rows`` and ``out_columns`` of ``out`` are written.
    """

    def emit(context, builder, sig, args):
        out, out_row_bytes, out_rows, out_columns, x, x_row_bytes, x_rows, x_columns = args

        def place(base, stride, row):
            return builder.add(base, builder.mul(ir.Constant(stride.type, row), stride))

        def flags(row, rows, columns):
            number, none = ir.Constant(rows.type, row), ir.Constant(rows.type, 0)
            return first_lanes(builder, builder.select(builder.icmp_signed("<", number, rows), columns, none))

        rows = [
            masked_load(builder, place(x, x_row_bytes, row), flags(row, x_rows, x_columns))
            for row in range(LANES)
        ]
        for row, lanes in enumerate(_transpose_square(builder, rows)):
            masked_store(builder, lanes, place(out, out_row_bytes, row), flags(row, out_rows, out_columns))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), emit


def _transpose_square(builder, rows):
    """Emit the transpose of a square of vectors: squares of 2, then 4, 8 … exchange their corners."""
    half = 1
    while half < LANES:
        lower = [lane if not lane & half else LANES + lane - half for lane in range(LANES)]
        upper = [lane + half if not lane & half else LANES + lane for lane in range(LANES)]
        kind = ir.VectorType(ir.IntType(32), LANES)
        lower, upper = ir.Constant(kind, lower), ir.Constant(kind, upper)
        for row in range(LANES):
            if not row & half:
                top, bottom = rows[row], rows[row + half]
                rows[row] = builder.shuffle_vector(top, bottom, lower)
                rows[row + half] = builder.shuffle_vector(top, bottom, upper)
        half *= 2
    return rows
