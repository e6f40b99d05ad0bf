"""A rotation of rows that mixes each 64 of their numbers, on vectors of 16."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from tallrec.llm.kernels.native import LOOP

_LANES, RUNS, _BYTES = 16, 4, 4  # of a vector, of a row, and of a number
_FLOATS = ir.VectorType(ir.FloatType(), _LANES)
_INDEX, _LONG = ir.IntType(32), ir.IntType(64)


def rotated(builder: Any, vectors: list[Any]) -> list[Any]:
    """Each four vectors with all their numbers mixed, times 8.

    What has to wait for each other is written as far apart as can be.
    """
    for step in (1, 2):
        vectors = _across(builder, vectors, step)
    for step in (1, 2, 4, 8):
        vectors = _within(builder, vectors, step)
    return vectors


def _across(builder: Any, vectors: list[Any], step: int) -> list[Any]:
    """Sums and differences of vectors that are some steps apart."""
    return [
        builder.fsub(vectors[k - step], one) if k & step else builder.fadd(one, vectors[k + step])
        for k, one in enumerate(vectors)
    ]


def _within(builder: Any, vectors: list[Any], step: int) -> list[Any]:
    """Sums and differences of numbers of each vector that are some steps apart."""
    others = ir.Constant(ir.VectorType(_INDEX, _LANES), [k ^ step for k in range(_LANES)])
    signs = ir.Constant(_FLOATS, [-1.0 if k & step else 1.0 for k in range(_LANES)])
    nothing = ir.Constant(_FLOATS, ir.Undefined)
    turned = [builder.shuffle_vector(vector, nothing, others) for vector in vectors]
    signed = [builder.fmul(vector, signs, flags=("contract",)) for vector in vectors]
    return [
        builder.fadd(one, other, flags=("contract",))
        for one, other in zip(signed, turned, strict=True)
    ]


@intrinsic
def _rotate(_context: Any, address: Any, step: Any) -> Any:
    """Of four vectors in place, the bytes of a step from each other."""

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        places = [
            builder.inttoptr(
                builder.add(arguments[0], builder.mul(arguments[1], _LONG(run))),
                _FLOATS.as_pointer(),
            )
            for run in range(RUNS)
        ]
        vectors = [builder.load(place, align=_BYTES) for place in places]
        for place, vector in zip(places, rotated(builder, vectors), strict=True):
            builder.store(vector, place, align=_BYTES)
        return context.get_dummy_value()

    return types.void(address, step), code


@njit(**LOOP)
def rotate(x_d: Any) -> None:
    """Rotates a row of float32 in place, times 8; d is a multiple of 64.

    Each 16 neighbours are mixed with each other and with those of the row's other quarters.
    """
    run = len(x_d) // RUNS
    for at in range(0, run, _LANES):
        _rotate(x_d.ctypes.data + at * _BYTES, run * _BYTES)  # type: ignore[call-arg]
