"""A rotation of rows that mixes each 64 of their numbers, on vectors of 16."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from tallrec.llm.kernels.native import LOOP

_LANES, _RUNS, _BYTES = 16, 4, 4  # of a vector, of a row, and of a number
_FLOATS = ir.VectorType(ir.FloatType(), _LANES)
_INDEX, _LONG = ir.IntType(32), ir.IntType(64)


def _spread(builder: Any, vectors: list[Any]) -> list[Any]:
    """Sums and differences of four vectors: a Hadamard matrix times them."""
    first, second, third, fourth = vectors
    one, two = builder.fadd(first, second), builder.fsub(first, second)
    three, four = builder.fadd(third, fourth), builder.fsub(third, fourth)
    return [
        builder.fadd(one, three),
        builder.fadd(two, four),
        builder.fsub(one, three),
        builder.fsub(two, four),
    ]


def _mixed(builder: Any, vector: Any) -> Any:
    """A Hadamard matrix times the numbers of a vector."""
    for step in (1, 2, 4, 8):
        others = ir.Constant(ir.VectorType(_INDEX, _LANES), [k ^ step for k in range(_LANES)])
        signs = ir.Constant(_FLOATS, [-1.0 if k & step else 1.0 for k in range(_LANES)])
        other = builder.shuffle_vector(vector, ir.Constant(_FLOATS, ir.Undefined), others)
        signed = builder.fmul(vector, signs, flags=("contract",))
        vector = builder.fadd(signed, other, flags=("contract",))
    return vector


@intrinsic
def _rotate(_context: Any, address: Any, step: Any) -> Any:
    """Of four vectors in place, the bytes of a step from each other."""

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        places = [
            builder.inttoptr(
                builder.add(arguments[0], builder.mul(arguments[1], _LONG(run))),
                _FLOATS.as_pointer(),
            )
            for run in range(_RUNS)
        ]
        vectors = [builder.load(place, align=_BYTES) for place in places]
        for place, vector in zip(places, _spread(builder, vectors), strict=True):
            builder.store(_mixed(builder, vector), place, align=_BYTES)
        return context.get_dummy_value()

    return types.void(address, step), code


@njit(**LOOP)
def rotate(x_d: Any) -> None:
    """Rotates a row of float32 in place, times 8; d is a multiple of 64.

    Each 16 neighbours are mixed with each other and with those of the row's other quarters.
    """
    run = len(x_d) // _RUNS
    for at in range(0, run, _LANES):
        _rotate(x_d.ctypes.data + at * _BYTES, run * _BYTES)  # type: ignore[call-arg]
