"""Loops over rows of tensors, compiled by Numba and shared out to torch's own threads.

Between two matrix products a model goes over its activations many times: torch reads and writes
them once for each elementary operation. A loop that does all of it in one pass, on the cores that
torch's products have just used, is several times as quick. Such a loop is a function of a job: the
addresses of its arrays, as int64, behind a pointer to the dtype that it is compiled for.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, cast

import llvmlite.binding as llvm
import numpy as np
import torch
from llvmlite import ir
from numba import carray, cfunc, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic, overload
from torch import Tensor

from tallrec.llm.fused import openmp

# Not "nnan": what is not a number must stay so, to be found where a loss is checked.
_MATH: dict[str, Any] = {"fastmath": {"reassoc", "contract", "arcp", "nsz"}, "error_model": "numpy"}
PART: dict[str, Any] = {"nogil": True, **_MATH}
# Inlined by Numba: called, it would be one of two copies, which LLVM may have compiled otherwise,
# one in the process that compiles and the other in those that read the cache.
LOOP: dict[str, Any] = {**PART, "inline": "always"}
BITS, FLOAT = np.uint16, np.float32
UINT, INT, LONG = np.uint32, np.int32, np.int64
_LINE = 64  # bytes of a cache's line
_HEAD, _FIELDS = 1, 3  # numbers of a job before its arrays, and for each of them

_openmp = cast("ctypes.CDLL", openmp())
_openmp.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, *2 * (ctypes.c_uint,)]
_openmp.GOMP_parallel.restype = None
llvm.load_library_permanently(_openmp._name)  # where compiled loops ask which thread they are


class compiled:  # noqa: N801 - a decorator
    """Decorator: a function of a job as machine code, for each dtype when it is first run.

    From the cache, if it was compiled before.
    """

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._codes: dict[torch.dtype, Any] = {}

    def address(self, dtype: torch.dtype) -> int:
        """Where the machine code for a dtype is."""
        if dtype not in self._codes:
            number = types.float32 if dtype == torch.float32 else types.uint16
            signature = types.void(types.CPointer(number))
            try:
                code = cfunc(signature, cache=True, **_MATH)(self._loop)
            except RuntimeError as error:
                if "no locator" not in str(error):  # of a place for the cache: nothing can be kept
                    raise
                code = cfunc(signature, **_MATH)(self._loop)
            self._codes[dtype] = code
        return int(self._codes[dtype].address)


@cache
def constant(number: float) -> Tensor:
    """A number as a loop reads it; torch takes as long to make one as for a row."""
    return torch.tensor([number])


def run(loop: compiled, *arrays: Tensor) -> None:
    """Runs a compiled loop over the rows of the first array, on torch's threads.

    Args:
        loop: The loop.
        *arrays: Contiguous tensors, the first in the dtype of the model; [.., d] are rows of d.
    """
    assert all(x.is_contiguous() for x in arrays)
    n = arrays[0].numel() // arrays[0].shape[-1]
    fields = [
        field
        for x in arrays
        for field in (x.data_ptr(), x.numel() // x.shape[-1] if x.shape[-1] else n, x.shape[-1])
    ]
    job = (ctypes.c_int64 * (_HEAD + len(fields)))(n, *fields)
    threads = min(n, torch.get_num_threads())
    address = loop.address(arrays[0].dtype)
    _openmp.GOMP_parallel(address, ctypes.addressof(job), threads, 0)


thread: Any = types.ExternalFunction("omp_get_thread_num", types.int32())
threads: Any = types.ExternalFunction("omp_get_num_threads", types.int32())


@intrinsic
def _pointer(_context: Any, address: Any) -> Any:
    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), code


@intrinsic
def _prefetch(_context: Any, address: Any) -> Any:
    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read_soon = flag(0), flag(3), flag(1)
        builder.call(function, [builder.inttoptr(arguments[0], cgutils.voidptr_t), *to_read_soon])
        return context.get_dummy_value()

    return types.void(address), code


@njit(**LOOP)
def fetch_ahead(x: Any, i: Any) -> None:
    """Asks for a row that will be needed soon, if there is one: a core's cache seldom has it."""
    if 0 <= i < len(x):
        for at in range(0, x.strides[0], _LINE):
            _prefetch(x.ctypes.data + i * x.strides[0] + at)  # type: ignore[call-arg]


@njit(**PART)
def share(n: Any) -> Any:
    """This thread's part of n rows, from and to."""
    number, of = thread(), threads()
    return n * number // of, n * (number + 1) // of


@njit(**PART)
def rows(job: Any, number: Any, dtype: Any) -> Any:
    """An array of the job, [n, d]."""
    at = _HEAD + _FIELDS * number
    address: Any = _pointer(job[at])  # type: ignore[call-arg]
    return carray(address, (job[at + 1], job[at + 2]), dtype)


@intrinsic
def by_longest_vectors(_context: Any) -> Any:
    """Has the function that calls this compiled with 512 bits, where LLVM would prefer 256."""

    def code(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        # llvmlite's own method takes none but attributes that it knows.
        set.update(builder.function.attributes, {'"prefer-vector-width"="512"', "noinline"})
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def numbers(_context: Any, job: Any) -> Any:
    """A job as the int64 that it is."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int64)(job), code


@intrinsic
def lent(_context: Any, owned: Any) -> Any:
    """A tuple of arrays that is named again, by `kept`, when all that is made of it is done with.

    So nobody has to count its parts, of which there are several for each row, by locked
    instructions: a tenth of the time of attention.
    """

    def uncounted(context: Any, builder: Any, kind: Any, value: Any) -> Any:
        if isinstance(kind, types.BaseTuple):
            parts = zip(cast("Any", kind), cgutils.unpack_tuple(builder, value), strict=True)
            lent = [uncounted(context, builder, *part) for part in parts]
            return context.make_tuple(builder, kind, lent)
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = ir.Constant(array.meminfo.type, None)
        return array._getvalue()

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return uncounted(context, builder, signature.return_type, arguments[0])

    return owned(owned), code


@intrinsic
def kept(_context: Any, owned: Any) -> Any:
    """Names what was `lent`: Numba gives arrays back behind the last place that names them."""

    def code(context: Any, _builder: Any, _signature: Any, _arguments: Any) -> Any:
        return context.get_dummy_value()

    return types.void(owned), code


def by_float32(job: Any, one: Any, other: Any) -> Any:
    """The one in a job of float32, the other in a job of bfloat16."""
    raise NotImplementedError


@overload(by_float32)
def _by_float32(job: Any, one: Any, other: Any) -> Any:  # noqa: ARG001 - its type tells
    def first(job: Any, one: Any, other: Any) -> Any:  # noqa: ARG001
        return one

    def second(job: Any, one: Any, other: Any) -> Any:  # noqa: ARG001
        return other

    return first if job.dtype == types.float32 else second


@njit(**LOOP)
def by_dtype(loop: Any, job: Any) -> None:
    """Runs a loop of a job's numbers and a dtype."""
    by_longest_vectors()  # type: ignore[call-arg]
    loop(numbers(job), by_float32(job, FLOAT, BITS))
