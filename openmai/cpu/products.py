"""Products of rows and matrices that lie in blocks of outputs: in fp32, and in 8 bits by AVX-512 VNNI, of which one instruction multiplies
and adds 64 pairs.

A matrix is (blocks, K, WIDE) in fp32; in 8 bits (blocks, K / 4, WIDE * 4), four inputs of an output side by side. Either way 128 bytes
meet 4 bytes of each row, so both kinds share all of the code but the multiplication. Each thread reads a matrix from where it begins to
where it ends, at the speed that memory has; MKL's, oneDNN's and fbgemm's products of a single row reach half to two thirds of it. What a
row gets does not depend on the others: each sum runs along the inputs, in their order.
"""

from __future__ import annotations

import numpy as np
from llvmlite import binding, ir
from numba import carray, prange, types
from numba.core import cgutils
from numba.core.errors import NumbaTypeError
from numba.extending import intrinsic, overload

from openmai.cpu.compile import LINE, Array, compiled, emit_prefetch, inner, next_job, pointer, threads

WIDE = 32  # outputs computed side by side: two registers of 16
TILE = 8  # rows that share the weights that are read
AHEAD = 2048  # bytes
WEIGHTS, BIAS, SCALE, OFFSET, DEPTH, OUTPUTS = range(6)  # what describes a matrix: addresses of arrays, then numbers


def has_avx512(kind: str = "f") -> bool:
    """Tell whether this processor has these instructions: "f" for fp32, "vnni" for 8 bits."""
    return bool(binding.get_host_cpu_features().get(f"avx512{kind}"))


def multiply(x_NK: Array, weights: Array, bias: Array, scale: Array, offset: Array) -> Array:
    """Return the products (N, F padded to whole blocks) of rows in fp32 with a matrix in blocks.

    `bias`, `scale` and `offset` are as long as the result is wide. With weights in 8 bits a product is (sum - offset) * scale, where the
    sum is of whole numbers 1 to 255 about 128; in fp32 these two are not looked at.
    """
    y_NF = np.empty((len(x_NK), len(bias)), np.float32)
    laid = np.empty(len(x_NK) * weights.shape[1], np.uint32 if weights.dtype == np.int8 else np.float32)
    _multiply(len(x_NK) * weights.size, x_NK, laid, weights, bias, scale, offset, y_NF, threads())
    return y_NF


@compiled
def _multiply(x, laid, weights, bias, scale, offset, y, threads):  # type: ignore[no-untyped-def]
    top = np.empty(len(x), np.float32)
    for row in prange(len(x)):
        lay(x[row], np.int64(row), len(x), laid, top)
    matrix = np.array([weights.ctypes.data, bias.ctypes.data, scale.ctypes.data, offset.ctypes.data, weights.shape[1], len(bias)], np.int64)
    claimed = np.zeros((threads, LINE), np.int64)
    for thread in prange(threads):
        claim_products(claimed, np.int64(thread), laid, top, matrix, y, False)


def lay(x, row, rows, laid, top):  # type: ignore[no-untyped-def]
    """Write a row to its place in `laid`, which has the rows of a tile side by side: (tiles, inputs, rows of the tile).

    For 8 bits `laid` is of uint32, each four numbers from 1 to 255 about 128, of which 127 are `top` of the row.
    """
    raise NotImplementedError("only inside compiled code")


@overload(lay)
def _compile_lay(x, row, rows, laid, top):  # type: ignore[no-untyped-def]
    return _lay_fp32 if laid.dtype == types.float32 else _lay_8_bits


def _lay_fp32(x, row, rows, laid, top):  # type: ignore[no-untyped-def]
    first, count = _tile(row, rows)
    start = first * len(x) + row - first
    for column in range(len(x)):
        laid[start + column * count] = x[column]


def _lay_8_bits(x, row, rows, laid, top):  # type: ignore[no-untyped-def]
    most = np.float32(1e-30)
    for column in range(len(x)):
        most = max(most, abs(x[column]))
    top[row] = most
    factor = np.float32(127) / most
    numbers = np.zeros((len(x) + 3) // 4 * 4, np.uint8)
    for column in range(len(x)):
        numbers[column] = np.uint8(np.int32(np.rint(x[column] * factor)) + 128)
    fours = numbers.view(np.uint32)
    first, count = _tile(row, rows)
    start = first * len(fours) + row - first
    for group in range(len(fours)):
        laid[start + group * count] = fours[group]


@inner
def _tile(row, rows):  # type: ignore[no-untyped-def]
    """Return the first row and the number of rows of a row's tile: 8 as long as there are, then 4, 2 and 1."""
    first, size = rows // TILE * TILE, TILE // 2
    if row < first:
        return row // TILE * TILE, TILE
    while size > 1:
        if rows - first >= size:
            if row < first + size:
                return first, size
            first += size
        size //= 2
    return row, 1


@inner
def claim_products(claimed, thread, laid, top, matrix, y, adds):  # type: ignore[no-untyped-def]
    """Compute blocks of a matrix as long as there are."""
    count = matrix[OUTPUTS] // WIDE
    block, part = next_job(claimed, thread, 0, count)
    while block < count:
        add_products(laid, top, matrix, block, y, adds)
        block, part = next_job(claimed, thread, part, count)


@inner
def add_products(laid, top, matrix, block, y, adds):  # type: ignore[no-untyped-def]
    """Write the products of all rows with one block of a matrix to the block's columns of `y`, or add them to what is there."""
    sums = np.empty((TILE, WIDE), laid.dtype)
    start, row = matrix[WEIGHTS] + block * matrix[DEPTH] * WIDE * 4, 0
    while row < len(y):
        _, size = _tile(row, len(y))
        half = np.int64(row > 0)
        if size == 8 and len(y) > 8:
            _add_up(8, True, half, laid, row, start, matrix[DEPTH], sums)
        elif size == 8:
            _add_up(8, False, 0, laid, row, start, matrix[DEPTH], sums)
        elif size == 4:
            _add_up(4, False, 0, laid, row, start, matrix[DEPTH], sums)
        elif size == 2:
            _add_up(2, False, 0, laid, row, start, matrix[DEPTH], sums)
        else:
            _add_up(1, False, 0, laid, row, start, matrix[DEPTH], sums)
        for n in range(size):
            _finish(sums[n], top[row + n], matrix, block, y[row + n, block * WIDE : (block + 1) * WIDE], adds)
        row += size


def _finish(sums, top, matrix, block, y, adds):  # type: ignore[no-untyped-def]
    """Turn sums of one row into products."""
    raise NotImplementedError("only inside compiled code")


@overload(_finish)
def _compile_finish(sums, top, matrix, block, y, adds):  # type: ignore[no-untyped-def]
    return _finish_fp32 if sums.dtype == types.float32 else _finish_8_bits


def _finish_fp32(sums, top, matrix, block, y, adds):  # type: ignore[no-untyped-def]
    bias = carray(pointer(matrix[BIAS] + block * WIDE * 4), WIDE, np.float32)
    for c in range(WIDE):
        y[c] = sums[c] + bias[c] + (y[c] if adds else np.float32(0))


def _finish_8_bits(sums, top, matrix, block, y, adds):  # type: ignore[no-untyped-def]
    bias = carray(pointer(matrix[BIAS] + block * WIDE * 4), WIDE, np.float32)
    scale = carray(pointer(matrix[SCALE] + block * WIDE * 4), WIDE, np.float32)
    offset = carray(pointer(matrix[OFFSET] + block * WIDE * 4), WIDE, np.int32)
    for c in range(WIDE):
        product = np.float32(np.int32(sums[c]) - offset[c]) * scale[c] * top
        y[c] = product + bias[c] + (y[c] if adds else np.float32(0))


@intrinsic
def _add_up(_context, rows, further, half, laid, row, start, depth, sums):  # type: ignore[no-untyped-def]
    """Write the products of a tile of `rows` (a constant) rows, from `row` on, with the block of weights at address `start` to `sums`.

    Where there are `further` tiles (a constant) memory has nothing to do meanwhile, so half of the next block is asked for, the second if
    `half`. One tile alone waits for memory, which is asked little ahead of what it brings by itself.
    """
    if not isinstance(rows, types.IntegerLiteral) or not isinstance(further, types.BooleanLiteral):
        raise NumbaTypeError("rows and further must be constants")
    in_fp32 = laid.dtype == types.float32

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        size, byte, index = ir.IntType(64), ir.IntType(8), ir.IntType(32)
        number = ir.FloatType() if in_fp32 else ir.IntType(32)
        vector, bytes_at = ir.VectorType(number, 16), ir.PointerType(byte)
        count, halves = rows.literal_value, WIDE // 16
        x_array, out = (context.make_array(signature.args[place])(context, builder, args[place]) for place in (3, 7))
        half, row, start, depth = (args[place] for place in (2, 4, 5, 6))
        x_start = builder.gep(builder.bitcast(x_array.data, bytes_at), [builder.mul(row, builder.mul(depth, size(4)))])
        w_start = builder.inttoptr(start, bytes_at)
        step = size(4 * WIDE)
        after = builder.gep(w_start, [builder.mul(depth, builder.add(step, builder.mul(half, size(64))))])
        multiply_and_add = _multiply_and_add(builder, vector)
        totals = [[cgutils.alloca_once_value(builder, vector(None)) for _ in range(halves)] for _ in range(count)]
        for line in totals:
            for total in line:
                builder.store(vector(None), total)
        with cgutils.for_range(builder, depth) as loop:
            at = builder.gep(w_start, [builder.mul(loop.index, step)])
            if further.literal_value:
                emit_prefetch(builder, builder.gep(after, [builder.mul(loop.index, size(64))]))
            else:
                for part in range(halves):
                    emit_prefetch(builder, builder.gep(at, [size(AHEAD + 64 * part)]))
            parts = []
            for part in range(halves):
                place = builder.gep(at, [size(64 * part)])
                parts.append(builder.load(builder.bitcast(place, ir.PointerType(vector)), align=4))
            for n in range(count):
                place = builder.gep(x_start, [builder.add(builder.mul(loop.index, size(4 * count)), size(4 * n))])
                one = builder.load(builder.bitcast(place, ir.PointerType(number)), align=4)
                single = builder.insert_element(ir.Constant(vector, ir.Undefined), one, index(0))
                spread = builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(index, 16), [0] * 16))
                for part in range(halves):
                    total = totals[n][part]
                    builder.store(multiply_and_add(builder.load(total), spread, parts[part]), total)
        target = builder.bitcast(out.data, ir.PointerType(vector))
        for n in range(count):
            for part in range(halves):
                builder.store(builder.load(totals[n][part]), builder.gep(target, [size(n * halves + part)]), align=4)
        return context.get_dummy_value()

    return types.void(rows, further, types.intp, laid, types.intp, types.intp, types.intp, sums), generate


def _multiply_and_add(builder, vector):  # type: ignore[no-untyped-def]
    """Return what emits total + x * w for registers of 16 floats, or of 16 times four bytes, which are whole numbers added in 32 bits."""
    if isinstance(vector.element, ir.FloatType):
        kind, name, operand = ir.FunctionType(vector, [vector] * 3), "llvm.fma.v16f32", vector
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return lambda total, x, w: builder.call(function, [x, w, total])
    operand = vector if binding.llvm_version_info[0] < 22 else ir.VectorType(ir.IntType(8), 64)  # LLVM's name for it is the same
    kind, name = ir.FunctionType(vector, [vector, operand, operand]), "llvm.x86.avx512.vpdpbusd.512"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return lambda total, x, w: builder.call(function, [total, builder.bitcast(x, operand), builder.bitcast(w, operand)])
