"""Compiling for CPUs: one function for one thread and for many, and what such functions are made of."""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray
from torch import Tensor

_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
FAST = {"reassoc", "contract", "nsz", "arcp"}  # the order of sums is the compiler's, but always the same
MANY = 1 << 16  # numbers; above, threads are worth waking
LINE = 8  # numbers of 64 bits in a cache line; counters of threads do not share one
_SETTINGS: dict[str, Any] = {"fastmath": FAST, "nogil": True, "error_model": "numpy"}
_CODE = hashlib.blake2b(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))), digest_size=6).hexdigest()

Array = NDArray[Any]
inner = njit(**_SETTINGS)
"Compile a function that only compiled ones call."


def threads() -> int:
    """Return how many threads compute."""
    return min(torch.get_num_threads(), _THREADS)


def compiles(x: Tensor) -> bool:
    """Tell whether compiled steps take a tensor: a plain one on a CPU, in fp32 or fp64, of a pass without gradients that is not traced."""
    plain = type(x) is Tensor and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return plain and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function, whose parallel loops are `prange`, for one thread and for as many as PyTorch has.

    The result takes the number of numbers it is about first, and chooses by it. A step of a single thread stays out of OpenMP: a team of
    one makes OpenMP end the threads of the larger one, and start them anew. The compiled code is kept on disk, by a name that says what
    is in this folder: numba itself looks at the function's own file only, not at those of what it calls.
    """

    def named(name: str, **settings: Any) -> Callable[..., None]:
        twin = FunctionType(function.__code__, function.__globals__, name)
        twin.__qualname__, twin.__module__ = f"{name}_{_CODE}", function.__module__
        return njit(cache=True, **(_SETTINGS | settings))(twin)

    alone, together = named(function.__name__), named(function.__name__ + "_threads", parallel=True)

    def run(size: int, *arguments: object) -> None:
        if size < MANY or (count := threads()) == 1:
            alone(*arguments)
        else:
            numba.set_num_threads(count)
            together(*arguments)

    return run


def end_threads() -> None:
    """End the threads that OpenMP keeps for the calling thread; it starts new ones when they are wanted.

    It keeps some for each thread that has computed. Where these are more than processors, all of them sleep between steps rather than wait,
    and waking them takes as long as a step of one token in 8 bits.
    """
    with suppress(OSError, AttributeError):  # another OpenMP than GCC's
        ctypes.CDLL("libgomp.so.1").omp_pause_resource_all(1)


def exp(x):  # type: ignore[no-untyped-def]
    """e to the power of x <= 0, in code of which the compiler can do many at once; for fp64 the library's."""
    raise NotImplementedError("only inside compiled code")


@overload(exp, jit_options={"fastmath": {"contract"}})
def _compile_exp(x):  # type: ignore[no-untyped-def]
    return _exp_fp32 if x == types.float32 else lambda x: math.exp(x)


def _exp_fp32(x):  # type: ignore[no-untyped-def]
    """Cephes' expf: 2^n times a polynomial of degree 7 in what is left, |r| <= ln(2) / 2; within 2e-7."""
    x = max(x, np.float32(-87))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)  # ln(2) in two parts, the first exact in few bits
    p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    return (p * r * r + r + np.float32(1)) * _as_float((np.int32(n) + np.int32(127)) << np.int32(23))


@intrinsic
def _as_float(_context, bits):  # type: ignore[no-untyped-def]
    """The float of these 32 bits."""
    return types.float32(types.int32), lambda context, builder, signature, args: builder.bitcast(args[0], ir.FloatType())


@intrinsic
def pointer(_context, address):  # type: ignore[no-untyped-def]
    """The pointer to an address."""
    return types.voidptr(types.intp), lambda context, builder, signature, args: builder.inttoptr(args[0], ir.PointerType(ir.IntType(8)))


@intrinsic
def claim(_context, counters, place):  # type: ignore[no-untyped-def]
    """Return counters[place, 0] and add one to it, in one step for all threads."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        array = context.make_array(counters)(context, builder, args[0])
        place = builder.gep(array.data, [builder.mul(args[1], ir.IntType(64)(LINE))])
        return builder.atomic_rmw("add", place, ir.IntType(64)(1), "monotonic")

    return types.int64(counters, types.intp), generate


@inner
def next_job(claimed, thread, part, count):  # type: ignore[no-untyped-def]
    """Claim a job of `count`: the next one of a thread's own part, then, when these are done, of the others'.

    So each thread reads on where it is, and one that the machine holds up, to serve somebody meanwhile, leaves its jobs to the others.
    `claimed` (threads, LINE) counts jobs of each part; `part` is how many parts after its own the thread is at. Returns job and part; a
    part that does not exist when nothing is left.
    """
    threads = len(claimed)
    while part < threads:
        owner = (thread + part) % threads
        job = owner * count // threads + claim(claimed, owner)
        if job < (owner + 1) * count // threads:
            return job, part
        part += 1
    return count, part


def emit_prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Emit the request for the cache line at an address: to be read, into the second cache."""
    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [address, number(0), number(2), number(1)])


@intrinsic
def prefetch(_context, row):  # type: ignore[no-untyped-def]
    """Ask for the beginning of an array before it is needed: where pages end the processor foresees nothing."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit_prefetch(builder, builder.bitcast(context.make_array(row)(context, builder, args[0]).data, ir.PointerType(ir.IntType(8))))

    return types.void(row), generate
