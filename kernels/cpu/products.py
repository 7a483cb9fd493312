"""The one micro-kernel that every matrix product here is made of, and the transposition of a square.

``product`` computes a tile of ROWS × (2 W) results that stay in registers for as long as the sum goes on:

    out[r, :] = Σ_t left[r, t] · right[t, :]

Of ``left`` it reads single floats, each broadcast to all lanes, so ``left`` may lie in memory in any way;
of ``right`` it reads vectors. With 32 registers, 8 rows × 2 vectors are 16 sums that don't wait for each
other, enough to hide the latency of the multiplier, for 10 loads; with 16 registers, 4 × 2 fit.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from minitransformer.kernels.cpu.emitting import (
    BYTES,
    FLOAT,
    REGISTERS,
    WIDTH,
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
def product(typingctx, vectors, out, out_row, left, left_row, left_step, right, right_step, depth, rescale):
    """Compute one tile, ROWS × (``vectors`` · W), over ``depth`` steps. All strides are in bytes.

    The sums start at zero if ``rescale`` is None; otherwise it is the address of as many factors as there are
    columns, and the sums start at ``out`` times these.
    """
    width = vectors.literal_value

    def emit(context, builder, sig, args):
        _, out, out_row, left, left_row, left_step, right, right_step, depth, rescale = args

        def column(base, number):
            return builder.add(base, ir.Constant(base.type, number * BYTES))

        row_addresses, out_addresses = [], []
        for r in range(ROWS):
            number = ir.Constant(out.type, r)
            row_addresses.append(builder.add(left, builder.mul(number, left_row)))
            out_addresses.append(builder.add(out, builder.mul(number, out_row)))

        sums = []
        for address in out_addresses:
            for c in range(width):
                if isinstance(sig.args[-1], types.NoneType):
                    start = ir.Constant(ir.VectorType(FLOAT, WIDTH), [0.0] * WIDTH)
                else:
                    start = builder.fmul(
                        load_at(builder, column(address, c)), load_at(builder, column(rescale, c))
                    )
                sums.append(cgutils.alloca_once_value(builder, start))

        with cgutils.for_range(builder, depth) as loop:
            across = builder.mul(loop.index, left_step)
            down = builder.add(right, builder.mul(loop.index, right_step))
            factors = [load_at(builder, column(down, c)) for c in range(width)]
            for r, address in enumerate(row_addresses):
                one = broadcast(builder, load_at(builder, builder.add(address, across), FLOAT))
                for c, factor in enumerate(factors):
                    total = sums[r * width + c]
                    builder.store(multiply_add(builder, one, factor, builder.load(total)), total)

        for r, address in enumerate(out_addresses):
            for c in range(width):
                store_at(builder, builder.load(sums[r * width + c]), column(address, c))
        return context.get_dummy_value()

    return types.void(vectors, *[types.int64] * 8, rescale), emit


@intrinsic
def transpose(typingctx, out, out_row, out_rows, out_columns, x, x_row, x_rows, x_columns):
    """Write the transpose of the square of W × W floats at ``x`` to ``out``. Strides are in bytes.

    Of ``x`` only the first ``x_rows`` and ``x_columns`` are read and the rest is taken for zeros; of
    ``out`` only the first ``out_rows`` and ``out_columns`` are written.
    """

    def emit(context, builder, sig, args):
        out, out_row, out_rows, out_columns, x, x_row, x_rows, x_columns = args

        def place(base, stride, row):
            return builder.add(base, builder.mul(ir.Constant(stride.type, row), stride))

        def flags(row, rows, columns):
            number, none = ir.Constant(rows.type, row), ir.Constant(rows.type, 0)
            return first_lanes(builder, builder.select(builder.icmp_signed("<", number, rows), columns, none))

        rows = [
            masked_load(builder, place(x, x_row, row), flags(row, x_rows, x_columns)) for row in range(WIDTH)
        ]
        for row, lanes in enumerate(_transposed(builder, rows)):
            masked_store(builder, lanes, place(out, out_row, row), flags(row, out_rows, out_columns))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), emit


def _transposed(builder, rows):
    """Emit the columns of a square of vectors: squares of 2, then 4, 8 … exchange their corners."""
    half = 1
    while half < WIDTH:
        lower = [lane if not lane & half else WIDTH + lane - half for lane in range(WIDTH)]
        upper = [lane + half if not lane & half else WIDTH + lane for lane in range(WIDTH)]
        kind = ir.VectorType(ir.IntType(32), WIDTH)
        lower, upper = ir.Constant(kind, lower), ir.Constant(kind, upper)
        for row in range(WIDTH):
            if not row & half:
                top, bottom = rows[row], rows[row + half]
                rows[row] = builder.shuffle_vector(top, bottom, lower)
                rows[row + half] = builder.shuffle_vector(top, bottom, upper)
        half *= 2
    return rows
