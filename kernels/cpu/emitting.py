"""The LLVM instructions that the intrinsics of ``vectors`` and ``products`` emit.

``builder`` is llvmlite's ``IRBuilder``; addresses are integers.
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils
from numba.core.registry import cpu_target

FLOAT, WORD, LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
CONTRACT = ("contract",)  # a·b + c may round once; no other relaxation: infinities stay infinities


def _register_bits():
    """Return the size in bits of the widest register that LLVM uses for float32 on this processor."""
    module = ir.Module()
    vector = ir.VectorType(FLOAT, 16)
    function = ir.Function(module, ir.FunctionType(vector, [vector, vector]), "add")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(builder.fadd(*function.args))
    parsed = llvm.parse_assembly(str(module))
    machine = cpu_target.target_context.codegen()._tm  # the target that Numba compiles for
    parsed.triple = machine.triple
    assembly = machine.emit_assembly(parsed)
    return 512 if "zmm" in assembly else 256 if "ymm" in assembly else 128


LANES = _register_bits() // 32
VECTOR_BYTES = 4 * LANES
ON_ARM = llvm.get_process_triple().startswith(("aarch64", "arm64"))
REGISTERS = 32 if LANES == 16 or ON_ARM else 16


def broadcast(builder, scalar):
    """Emit a vector of ``scalar`` in every lane."""
    one = ir.VectorType(scalar.type, 1)
    first = builder.insert_element(ir.Constant(one, ir.Undefined), scalar, ir.Constant(WORD, 0))
    zeros = ir.Constant(ir.VectorType(WORD, LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(one, ir.Undefined), zeros)


def pointer(builder, address, element=None):
    """Emit the pointer to a vector (or ``element``) at ``address``."""
    element = element or ir.VectorType(FLOAT, LANES)
    return builder.inttoptr(address, element.as_pointer())


def load_at(builder, address, element=None):
    """Emit a load from ``address``, which must be aligned to 4 bytes only."""
    value = builder.load(pointer(builder, address, element))
    value.align = 4
    return value


def load_bfloat16(builder, address):
    """Emit a load of LANES bfloat16 from ``address`` as floats, of which they are the upper halves."""
    wide = builder.zext(_load_integers(builder, address, 16), ir.VectorType(WORD, LANES))
    bits = builder.shl(wide, broadcast(builder, ir.Constant(WORD, 16)))
    return builder.bitcast(bits, ir.VectorType(FLOAT, LANES))


def load_int8(builder, address):
    """Emit a load of LANES int8 from ``address`` as floats."""
    wide = builder.sext(_load_integers(builder, address, 8), ir.VectorType(WORD, LANES))
    return builder.sitofp(wide, ir.VectorType(FLOAT, LANES))


def _load_integers(builder, address, bits):
    value = builder.load(pointer(builder, address, ir.VectorType(ir.IntType(bits), LANES)))
    value.align = bits // 8
    return value


def store_at(builder, value, address):
    """Emit a store to ``address``, which must be aligned to 4 bytes only."""
    builder.store(value, pointer(builder, address, value.type)).align = 4


def multiply_add(builder, a, b, c):
    """Emit a·b + c, fused where the processor has such an instruction."""
    return builder.fadd(builder.fmul(a, b, flags=CONTRACT), c, flags=CONTRACT)


def call(builder, name, result, arguments):
    """Emit a call of LLVM's intrinsic ``name``."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def first_lanes(builder, count):
    """Emit flags that are set in the first ``count`` lanes."""
    numbers = ir.Constant(ir.VectorType(WORD, LANES), list(range(LANES)))
    return builder.icmp_signed("<", numbers, broadcast(builder, builder.trunc(count, WORD)))


def masked_load(builder, address, flags):
    """Emit a load of the lanes whose flag is set; the others are 0, and their memory is not touched."""
    vector = ir.VectorType(FLOAT, LANES)
    arguments = [pointer(builder, address), ir.Constant(WORD, 4), flags, ir.Constant(vector, [0.0] * LANES)]
    return call(builder, f"llvm.masked.load.v{LANES}f32.p0", vector, arguments)


def masked_store(builder, value, address, flags):
    """Emit a store of the lanes whose flag is set."""
    arguments = [value, pointer(builder, address), ir.Constant(WORD, 4), flags]
    call(builder, f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), arguments)
