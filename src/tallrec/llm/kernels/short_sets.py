"""Sets of a row's numbers whose products are summed in 16 bits; see `short_products`.

A row is runs of 64 numbers, these some groups of 9 runs at most, and a set the same two neighbours
of all runs of a group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tallrec.llm.kernels.native import FLOAT, LOOP
from tallrec.llm.kernels.vectors import IS_LONG, can

RUN = 64
# Lengths of sets of inputs and of weights, in steps. Rounding moves 18 numbers by half a step each,
# so a length by 2.13 at most; then their product is less than 2^15 still.
X, W = 201.5, 157.5
MOST = 9  # runs of a group
_LANES, _BYTES = 16, 4  # numbers of a vector, and bytes of one
_FLOATS, _LONG, _INDEX = ir.VectorType(ir.FloatType(), _LANES), ir.IntType(64), ir.IntType(32)


def in_shorts() -> bool:
    """Whether the processor has the instructions."""
    return can("avx512bw") if IS_LONG else can("avx2")


IN_USE = in_shorts() and not any(map(can, ("avx512vnni", "avxvnni", "amx-int8")))


def groups_of(builder: Any, n_runs: Any) -> Any:
    """The number of groups."""
    return builder.udiv(builder.add(n_runs, _LONG(MOST - 1)), _LONG(MOST))


def ends_of(builder: Any, group: Any, n_groups: Any, n_runs: Any) -> Any:
    """A group's first run, and that behind its last."""
    for k in (0, 1):
        before = builder.mul(n_runs, builder.add(group, _LONG(k)))
        yield builder.udiv(before, n_groups)


@intrinsic
def _most(_context: Any, address: Any, n_runs: Any) -> Any:
    """The largest sum of squares of a set."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address, n_runs = arguments
        most = cgutils.alloca_once_value(builder, ir.Constant(_FLOATS, None))
        n_groups = groups_of(builder, n_runs)
        with cgutils.for_range(builder, n_groups) as group:
            first, last = ends_of(builder, group.index, n_groups, n_runs)
            parts = range(0, RUN, _LANES)
            sums = [cgutils.alloca_once(builder, _FLOATS) for _ in parts]
            for total in sums:
                builder.store(ir.Constant(_FLOATS, None), total)
            with cgutils.for_range(builder, last, start=first) as run:
                at = builder.add(address, builder.mul(run.index, _LONG(RUN * _BYTES)))
                for total, part in zip(sums, parts, strict=True):
                    place = builder.add(at, _LONG(part * _BYTES))
                    x = builder.load(builder.inttoptr(place, _FLOATS.as_pointer()), align=_BYTES)
                    square = builder.fmul(x, x, flags=("contract",))
                    more = builder.fadd(builder.load(total), square, flags=("contract",))
                    builder.store(more, total)
            for total in sums:
                squares = builder.load(total)
                _keep(builder, most, builder.fadd(squares, _other(builder, squares, 1)))
        for step in (2, 4, 8):
            _keep(builder, most, _other(builder, builder.load(most), step))
        return builder.extract_element(builder.load(most), _INDEX(0))

    return types.float32(address, n_runs), code


def _other(builder: Any, vector: Any, step: int) -> Any:
    """A vector whose numbers have changed places with those some steps off."""
    places = ir.Constant(ir.VectorType(_INDEX, _LANES), [k ^ step for k in range(_LANES)])
    return builder.shuffle_vector(vector, ir.Constant(_FLOATS, ir.Undefined), places)


def _keep(builder: Any, most: Any, vector: Any) -> None:
    before = builder.load(most)
    builder.store(builder.select(builder.fcmp_ordered(">", vector, before), vector, before), most)


@njit(**LOOP)
def least_top(x_d: Any, most: Any) -> Any:
    """What 127 steps must be at least, so that no set of a rounded row is longer than `most`."""
    squares: Any = _most(x_d.ctypes.data, len(x_d) // RUN)  # type: ignore[call-arg]
    return FLOAT(np.sqrt(squares) * FLOAT(127 / most))
