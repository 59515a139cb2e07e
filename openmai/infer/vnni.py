"""Products of rows and weights in 8 bits by AVX-512 VNNI, of which one instruction multiplies and adds 64 pairs.

fbgemm's product reads weights from memory at half the speed that there is, and needs a call of its own for each; this one asks for them
ahead, and keeps one copy for any number of rows.
"""

from __future__ import annotations

import numpy as np
import torch
from llvmlite import binding, ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.core.errors import NumbaTypeError
from numba.extending import intrinsic
from torch import Tensor, nn

from openmai.model.cpu import ALONE, compiled, prefetch

WIDE = 32  # outputs computed side by side: two registers of 16


def available() -> bool:
    """Tell whether this processor has the instruction."""
    return bool(binding.get_host_cpu_features().get("avx512vnni"))


class VnniLinear(nn.Module):
    """A linear layer with 8-bit weights, a scale per output, and activations brought to 8 bits token by token.

    Sums are of whole numbers and each token has a scale of its own, so what a token gets does not depend on the others of its batch.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.data
        self.outputs, self.inputs = weight.shape
        scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12)
        whole = (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
        padded = torch.zeros(-(-self.outputs // WIDE) * WIDE, -(-self.inputs // 4) * 4, dtype=torch.int8)
        padded[: self.outputs, : self.inputs] = whole
        # blocks of outputs, then groups of four inputs, then the outputs of a block, then the four
        self.packed = padded.view(-1, WIDE, padded.shape[1] // 4, 4).transpose(1, 2).contiguous().flatten(2)
        self.scale = scale.numpy() / np.float32(127)
        self.offset = (whole.sum(dim=1, dtype=torch.int32) * 128).numpy()
        self.bias = np.zeros(self.outputs, np.float32) if linear.bias is None else linear.bias.data.float().numpy()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.inputs).numpy()
        whole, top = np.empty((len(rows), self.packed.shape[1]), np.uint32), np.empty(len(rows), np.float32)
        y = torch.empty(len(rows), self.outputs)  # at the beginning of a cache line, unlike numpy's
        _to_bytes(rows.size, rows, whole, top)
        _multiply(len(rows) * self.packed.numel(), whole, top, self.packed.numpy(), self.scale, self.offset, self.bias, y.numpy())
        return y.view(*x.shape[:-1], self.outputs)


@compiled
def _to_bytes(x, whole, top):  # type: ignore[no-untyped-def]
    """Bring each row to whole numbers from 1 to 255 about 128, and note what 127 of them are.

    `whole` (N, K / 4) holds four at a time, those that meet the same weights side by side: (inputs, rows) within each tile of rows.
    """
    flat = whole.reshape(whole.size)
    for row in prange(x.shape[0]):
        most = np.float32(1e-30)
        for column in range(x.shape[1]):
            most = max(most, abs(x[row, column]))
        top[row] = most
        factor = np.float32(127) / most
        numbers = np.zeros(4 * whole.shape[1], np.uint8)
        for column in range(x.shape[1]):
            numbers[column] = np.uint8(np.int32(np.rint(x[row, column] * factor)) + 128)
        fours = numbers.view(np.uint32)
        first, count = _tile(np.int64(row), len(x))
        start = first * len(fours) + np.int64(row) - first
        for group in range(len(fours)):
            flat[start + group * count] = fours[group]


@njit(**ALONE)
def _tile(row, rows):  # type: ignore[no-untyped-def]
    """Return the first row and the number of rows of a row's tile: 8 as long as there are, then 4, 2 and 1."""
    first, size = rows // 8 * 8, 4
    if row < first:
        return row // 8 * 8, 8
    while size > 1:
        if rows - first >= size:
            if row < first + size:
                return first, size
            first += size
        size //= 2
    return row, 1


@compiled
def _multiply(x, top, packed, scale, offset, bias, y):  # type: ignore[no-untyped-def]
    """Multiply all rows by a block of outputs after the other; the rows of a tile share the weights that are read."""
    for block in prange(packed.shape[0]):
        sums = np.empty((8, WIDE), np.int32)
        first = np.int64(block) * WIDE
        last = min(first + WIDE, y.shape[1])
        offsets, scales, biases = offset[first:last], scale[first:last], bias[first:last]
        row = 0
        while row < len(x):
            _, size = _tile(row, len(x))
            half = np.int64(row > 0)
            if size == 8 and len(x) > 8:
                _add_up(8, 1, half, x, row, packed, block, sums)
            elif size == 8:
                _add_up(8, 2, 0, x, row, packed, block, sums)
            elif size == 4:
                _add_up(4, 2, 0, x, row, packed, block, sums)
            elif size == 2:
                _add_up(2, 2, 0, x, row, packed, block, sums)
            else:
                _add_up(1, 2, 0, x, row, packed, block, sums)
            for n in range(size):
                _scale(sums[n], offsets, scales, top[row + n], biases, y[row + n, first:last])
            row += size


@njit(**ALONE)
def _scale(sums, offset, scale, top, bias, y):  # type: ignore[no-untyped-def]
    for c in range(len(y)):
        y[c] = np.float32(np.int32(sums[c] - offset[c])) * scale[c] * top + bias[c]


@intrinsic
def _add_up(_context, rows, share, half, x, row, packed, block, sums):  # type: ignore[no-untyped-def]
    """Write the products of a tile of `rows` (a constant) rows, from `row` on, with a block of weights to `sums`.

    Meanwhile the next block is asked for: all of it (`share` 2) or a half of it (1), the second if `half`.
    """
    if not isinstance(rows, types.IntegerLiteral) or not isinstance(share, types.IntegerLiteral):
        raise NumbaTypeError("rows and share must be constants")

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        size, byte, number = ir.IntType(64), ir.IntType(8), ir.IntType(32)
        vector, pointer = ir.VectorType(number, 16), ir.PointerType(byte)
        count, halves = rows.literal_value, WIDE // 16
        x_array, weights, out = (context.make_array(signature.args[place])(context, builder, args[place]) for place in (3, 5, 7))
        depth = builder.extract_value(weights.shape, 1)
        x_start = builder.gep(builder.bitcast(x_array.data, pointer), [builder.mul(args[4], builder.mul(depth, size(4)))])
        step = size(4 * WIDE)
        w_start = builder.gep(builder.bitcast(weights.data, pointer), [builder.mul(args[6], builder.mul(depth, step))])
        lines = share.literal_value
        after = builder.gep(w_start, [builder.mul(depth, builder.add(step, builder.mul(args[2], size(64))))])
        operand = vector if binding.llvm_version_info[0] < 22 else ir.VectorType(byte, 64)  # LLVM's name for it is the same
        multiply = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector, operand, operand]), "llvm.x86.avx512.vpdpbusd.512"
        )
        totals = [[cgutils.alloca_once_value(builder, vector(None)) for _ in range(halves)] for _ in range(count)]
        for line in totals:
            for total in line:
                builder.store(vector(None), total)
        with cgutils.for_range(builder, depth) as loop:
            at = builder.gep(w_start, [builder.mul(loop.index, step)])
            for line in range(lines):
                place = builder.gep(after, [builder.mul(loop.index, size(64 * lines))])
                prefetch(builder, builder.gep(place, [size(64 * line)]))
            parts = []
            for half in range(halves):
                place = builder.gep(at, [size(64 * half)])
                parts.append(builder.load(builder.bitcast(place, ir.PointerType(operand)), align=1))
            for n in range(count):
                place = builder.gep(x_start, [builder.add(builder.mul(loop.index, size(4 * count)), size(4 * n))])
                four = builder.load(builder.bitcast(place, ir.PointerType(number)), align=1)
                single = builder.insert_element(ir.Constant(vector, ir.Undefined), four, number(0))
                spread = builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(number, 16), [0] * 16))
                spread = builder.bitcast(spread, operand)
                for half in range(halves):
                    total = totals[n][half]
                    builder.store(builder.call(multiply, [builder.load(total), spread, parts[half]]), total)
        target = builder.bitcast(out.data, ir.PointerType(vector))
        for n in range(count):
            for half in range(halves):
                builder.store(builder.load(totals[n][half]), builder.gep(target, [size(n * halves + half)]), align=4)
        return context.get_dummy_value()

    return types.void(rows, share, types.intp, x, types.intp, packed, types.intp, sums), generate
