"""Vector types for Numba, and their operations: each is about one instruction on LANES numbers.

Numba leaves vectorisation to LLVM's optimiser, which reaches about half of the processor's rate. Here vectors
are explicit: ``Floats`` are LANES float32 in one register, ``Words`` LANES uint32, ``Longs`` LANES uint64 in
two registers, ``Flags`` LANES booleans. LANES is 16 with AVX-512, 8 with AVX2 and 4 on other processors.
Inside a compiled function

    x = load(address)
    store(address, where(x <= splat(0.0), splat(0.0), x))

are three instructions. Memory is accessed by addresses, which are integers.

Every operation is an intrinsic at module level, because Numba's cache never finds a function that closes over
a variable.
"""

import operator

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from minitransformer.kernels.cpu.emitting import (
    CONTRACT,
    FLOAT,
    LANES,
    LONG,
    ON_ARM,
    VECTOR_BYTES,  # noqa: F401  for those who import this module
    WORD,
    broadcast,
    call,
    first_lanes,
    load_at,
    masked_load,
    masked_store,
    multiply_add,
    pointer,
    store_at,
)


class _Vector(types.Type):
    def __init__(self, name, element):
        super().__init__(f"{name}x{LANES}")
        self.element = element


FLOATS = _Vector("Floats", FLOAT)
WORDS = _Vector("Words", WORD)
LONGS = _Vector("Longs", LONG)
FLAGS = _Vector("Flags", ir.IntType(1))


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, ir.VectorType(vector.element, LANES))


# --- operators

_OPERATORS = {
    (operator.add, FLOATS): lambda builder, a, b: builder.fadd(a, b, flags=CONTRACT),
    (operator.sub, FLOATS): lambda builder, a, b: builder.fsub(a, b, flags=CONTRACT),
    (operator.mul, FLOATS): lambda builder, a, b: builder.fmul(a, b, flags=CONTRACT),
    (operator.truediv, FLOATS): lambda builder, a, b: builder.fdiv(a, b),
    (operator.add, WORDS): lambda builder, a, b: builder.add(a, b),
    (operator.xor, LONGS): lambda builder, a, b: builder.xor(a, b),
}
_COMPARISONS = {
    (operator.le, FLOATS): lambda builder, a, b: builder.fcmp_ordered("<=", a, b),
    (operator.gt, FLOATS): lambda builder, a, b: builder.fcmp_ordered(">", a, b),
    (operator.gt, WORDS): lambda builder, a, b: builder.icmp_unsigned(">", a, b),
    (operator.ge, WORDS): lambda builder, a, b: builder.icmp_unsigned(">=", a, b),
}


def _define(function, vector, result, emit):
    @infer_global(function)
    class _Typing(AbstractTemplate):
        def generic(self, args, kws):
            return signature(result, vector, vector) if args == (vector, vector) else None

    @lower_builtin(function, vector, vector)
    def _lower(context, builder, sig, args):
        return emit(builder, *args)


for (_function, _vector), _emit in _OPERATORS.items():
    _define(_function, _vector, _vector, _emit)
for (_function, _vector), _emit in _COMPARISONS.items():
    _define(_function, _vector, FLAGS, _emit)


# --- names


@intrinsic
def load(typingctx, address):
    """Return the LANES floats at ``address``."""
    return FLOATS(address), lambda context, builder, sig, args: load_at(builder, args[0])


@intrinsic
def store(typingctx, address, floats):
    """Write LANES ``floats`` to ``address``."""

    def emit(context, builder, sig, args):
        store_at(builder, args[1], args[0])
        return context.get_dummy_value()

    return types.void(address, FLOATS), emit


@intrinsic
def load_first(typingctx, address, count):
    """Return LANES floats: the first ``count`` at ``address``, then zeros."""

    def emit(context, builder, sig, args):
        return masked_load(builder, args[0], first_lanes(builder, args[1]))

    return FLOATS(types.int64, types.int64), emit


@intrinsic
def store_first(typingctx, address, floats, count):
    """Write the first ``count`` ≤ LANES of ``floats`` to ``address``."""

    def emit(context, builder, sig, args):
        masked_store(builder, args[1], args[0], first_lanes(builder, args[2]))
        return context.get_dummy_value()

    return types.void(types.int64, FLOATS, types.int64), emit


@intrinsic
def keep_first(typingctx, floats, count):
    """Return ``floats`` with zeros after the first ``count`` lanes."""

    def emit(context, builder, sig, args):
        zeros = ir.Constant(args[0].type, [0.0] * LANES)
        return builder.select(first_lanes(builder, args[1]), args[0], zeros)

    return FLOATS(FLOATS, types.int64), emit


@intrinsic
def load_integer(typingctx, address):
    """Return the int64 at ``address``."""
    kind = LONG
    return types.int64(address), lambda context, builder, sig, args: load_at(builder, args[0], kind)


@intrinsic
def load_one(typingctx, address):
    """Return the float at ``address``."""
    return types.float32(address), lambda context, builder, sig, args: load_at(builder, args[0], FLOAT)


@intrinsic
def store_one(typingctx, address, value):
    """Write one float to ``address``."""

    def emit(context, builder, sig, args):
        store_at(builder, context.cast(builder, args[1], sig.args[1], types.float32), args[0])
        return context.get_dummy_value()

    return types.void(address, value), emit


@intrinsic
def store_double(typingctx, address, value):
    """Write one float64 to ``address``."""

    def emit(context, builder, sig, args):
        store_at(builder, context.cast(builder, args[1], sig.args[1], types.float64), args[0])
        return context.get_dummy_value()

    return types.void(address, value), emit


@intrinsic
def splat(typingctx, value):
    """Return ``value`` in every lane, as floats."""

    def emit(context, builder, sig, args):
        return broadcast(builder, context.cast(builder, args[0], sig.args[0], types.float32))

    return FLOATS(value), emit


@intrinsic
def words(typingctx, value):
    """Return the low 32 bits of an integer in every lane."""

    def emit(context, builder, sig, args):
        return broadcast(builder, context.cast(builder, args[0], sig.args[0], types.uint32))

    return WORDS(value), emit


@intrinsic
def lane_numbers(typingctx):
    """Return the words 0, 1, … LANES − 1."""
    numbers = ir.Constant(ir.VectorType(WORD, LANES), list(range(LANES)))
    return WORDS(), lambda context, builder, sig, args: numbers


@intrinsic
def load_words(typingctx, address):
    """Return the LANES words at ``address``."""
    kind = ir.VectorType(WORD, LANES)
    return WORDS(address), lambda context, builder, sig, args: load_at(builder, args[0], kind)


@intrinsic
def where(typingctx, flags, yes, no):
    """Return ``yes`` in the lanes whose flag is set and ``no`` in the others."""
    return yes(FLAGS, yes, no), lambda context, builder, sig, args: builder.select(*args)


@intrinsic
def maximum(typingctx, a, b):
    """Return the larger of two numbers in each lane."""

    def emit(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return FLOATS(a, b), emit


@intrinsic
def fused(typingctx, a, b, c):
    """Return a·b + c."""
    return FLOATS(a, b, c), lambda context, builder, sig, args: multiply_add(builder, *args)


@intrinsic
def square_root(typingctx, x):
    """Return √x in each lane, rounded correctly."""

    def emit(context, builder, sig, args):
        return call(builder, f"llvm.sqrt.v{LANES}f32", args[0].type, args)

    return FLOATS(x), emit


# 2^f on [−1/2, 1/2], relative error 2e-9; the constant term is 1, so that exp2(0) is exactly 1
_EXP2 = 0.000153533617, 0.00133988749, 0.00961843736, 0.0555033247, 0.240226479, 0.693147203, 1.0


@intrinsic
def exp2(typingctx, x):
    """Return 2^x for x ≤ 127, correct to 2 units in the last place; exactly 0 below −126.5."""

    def emit(context, builder, sig, args):
        def constant(value):
            return broadcast(builder, ir.Constant(FLOAT, value))

        low = constant(-127.0)
        x = builder.select(builder.fcmp_ordered("<", args[0], low), low, args[0])  # NaN stays NaN
        whole = call(builder, f"llvm.rint.v{LANES}f32", x.type, [x])
        part = builder.fsub(x, whole)
        power = constant(_EXP2[0])
        for coefficient in _EXP2[1:]:
            power = multiply_add(builder, power, part, constant(coefficient))
        exponent = builder.fptosi(whole, ir.VectorType(WORD, LANES))
        exponent = builder.add(exponent, broadcast(builder, ir.Constant(WORD, 127)))
        exponent = builder.shl(exponent, broadcast(builder, ir.Constant(WORD, 23)))
        return builder.fmul(power, builder.bitcast(exponent, x.type))

    return FLOATS(x), emit


@intrinsic
def longs(typingctx, value):
    """Return an integer in every lane, or LANES words, as longs."""

    def emit(context, builder, sig, args):
        if value == WORDS:
            return builder.zext(args[0], ir.VectorType(LONG, LANES))
        return broadcast(builder, context.cast(builder, args[0], sig.args[0], types.int64))

    return LONGS(value), emit


@intrinsic
def product_of_low(typingctx, a, b):
    """Return the products of the low words of two longs, which processors have an instruction for."""

    def emit(context, builder, sig, args):
        low = ir.Constant(ir.VectorType(LONG, LANES), [0xFFFFFFFF] * LANES)
        return builder.mul(*(builder.and_(longs, low) for longs in args))

    return LONGS(a, b), emit


@intrinsic
def high(typingctx, a):
    """Return the high words of ``a`` as longs."""

    def emit(context, builder, sig, args):
        return builder.lshr(args[0], ir.Constant(ir.VectorType(LONG, LANES), [32] * LANES))

    return LONGS(a), emit


@intrinsic
def low(typingctx, a):
    """Return the low words of ``a``."""
    kind = ir.VectorType(WORD, LANES)
    return WORDS(a), lambda context, builder, sig, args: builder.trunc(args[0], kind)


@intrinsic
def interleave(typingctx, four):
    """Return four vectors of words as four others: the first words of each in turn, then the second, …"""

    def emit(context, builder, sig, args):
        a, b, c, d = cgutils.unpack_tuple(builder, args[0])
        ab, cd = (_shuffle(builder, one, other, range(2 * LANES)) for one, other in ((a, b), (c, d)))
        places = [[number % 4 * LANES + number // 4 for number in range(k, k + LANES)] for k in STARTS]
        return context.make_tuple(builder, sig.return_type, [_shuffle(builder, ab, cd, p) for p in places])

    return types.UniTuple(WORDS, 4)(four), emit


STARTS = range(0, 4 * LANES, LANES)


def _shuffle(builder, one, other, places):
    """Emit a vector of the elements at ``places`` of two vectors, counted through both."""
    places = list(places)
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(WORD, len(places)), places))


@intrinsic
def add_atomically(typingctx, address, amount):
    """Add to the int64 at ``address``, atomically; return its value before."""

    def emit(context, builder, sig, args):
        return builder.atomic_rmw("add", pointer(builder, args[0], LONG), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), emit


@intrinsic
def look_at(typingctx, address):
    """Return the int64 at ``address`` as it is now, even if another thread has just written it."""

    def emit(context, builder, sig, args):
        return builder.load_atomic(pointer(builder, args[0], LONG), "seq_cst", 8)

    return types.int64(types.int64), emit


@intrinsic
def pause(typingctx):
    """Let the core rest for some cycles, in a loop that waits for another thread."""

    def emit(context, builder, sig, args):
        machine = llvm.get_process_triple()
        if machine.startswith(("x86_64", "i686", "amd64")):
            call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        elif ON_ARM:
            call(builder, "llvm.aarch64.isb", ir.VoidType(), [ir.Constant(WORD, 15)])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def store_word(typingctx, address, value):
    """Write the low 32 bits of an integer."""

    def emit(context, builder, sig, args):
        store_at(builder, builder.trunc(args[1], WORD), args[0])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def sum_lanes(typingctx, floats):
    """Return the sum of all lanes, added in pairs, pairs of pairs and so on."""

    def emit(context, builder, sig, args):
        kind = ir.FunctionType(FLOAT, [FLOAT, args[0].type])
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, [ir.Constant(FLOAT, -0.0), args[0]], fastmath=("reassoc",))

    return types.float32(floats), emit


@intrinsic
def max_lane(typingctx, floats):
    """Return the largest lane."""

    def emit(context, builder, sig, args):
        return call(builder, f"llvm.vector.reduce.fmax.v{LANES}f32", FLOAT, args)

    return types.float32(floats), emit
