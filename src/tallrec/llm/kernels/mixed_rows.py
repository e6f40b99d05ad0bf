"""Rows as `mixed_products` reads them: rotated, and rounded to steps that leave room for sums.

What a gate gives is rotated where it is computed, and rounded to 1/127 of a row's largest number
right behind that: of its sigmoid, four decimal places are enough.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tallrec.llm.kernels.arithmetic import LOG2_E
from tallrec.llm.kernels.byte_rows import BYTES
from tallrec.llm.kernels.exponentials import FEW_POWERS, exp2
from tallrec.llm.kernels.int8 import BYTE, ZERO
from tallrec.llm.kernels.native import FLOAT, INT, LOOP
from tallrec.llm.kernels.rotation import RUNS, rotated
from tallrec.llm.kernels.vectors import (
    FLOATS,
    LANES,
    LONGS,
    WORD,
    WORDS,
    call,
    load,
    pointer,
    spread,
)

PART_OF, GROUP = 16, 48  # inputs: two parts of a group by sums, the third as they are
MULTIPLE = RUNS * GROUP  # widths are of it, so that what is mixed is multiplied alike
TERM = 4  # bytes behind a row: what is of it alone
_MOST = 63  # of what is added up
_VECTOR = PART_OF * BYTES


def _rotate(builder: Any, of_row: Any, width: Any, read: Any) -> list[Any]:
    """Writes a row, rotated as by `rotation.rotate`.

    Args:
        builder: What makes the code.
        of_row: Where it is written to.
        width: Of the row.
        read: Gives the vector that is some bytes behind the row's first.

    Returns:
        The largest numbers by sums and as they are, as bits: what is not a number is larger.
    """
    zero, run = ir.Constant(WORDS, None), builder.udiv(width, LONGS(RUNS))
    most = [cgutils.alloca_once_value(builder, zero) for _ in range(2)]
    with cgutils.for_range(builder, builder.udiv(run, LONGS(GROUP))) as loop:
        group = builder.mul(loop.index, LONGS(GROUP * BYTES))
        runs = [builder.add(group, builder.mul(run, LONGS(k * BYTES))) for k in range(RUNS)]
        parts = range(0, GROUP * BYTES, _VECTOR)
        places = [builder.add(at, LONGS(part)) for part in parts for at in runs]
        vectors = rotated(builder, [read(place) for place in places])
        for at, (place, vector) in enumerate(zip(places, vectors, strict=True)):
            of_part = most[at // RUNS // 2]
            builder.store(vector, pointer(builder, of_row, place, FLOATS), align=BYTES)
            size = builder.bitcast(vector, WORDS)
            size = builder.and_(size, ir.Constant(WORDS, LANES * [0x7FFFFFFF]))
            before = builder.load(of_part)
            larger = builder.icmp_signed(">", size, before)
            builder.store(builder.select(larger, size, before), of_part)
    return [_reduced(builder, "smax", builder.load(of_part)) for of_part in most]


def _reduced(builder: Any, how: str, vector: Any) -> Any:
    kind = ir.FunctionType(WORD, [WORDS])
    name = f"llvm.vector.reduce.{how}.v{LANES}i32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [vector])


@intrinsic
def _rotate_row(_context: Any, of_row: Any, width: Any) -> Any:
    """Of a row, in place; gives what `_rotate` gives."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of_row, width = arguments
        most = _rotate(builder, of_row, width, lambda at: load(builder, of_row, at, FLOATS))
        return context.make_tuple(builder, signature.return_type, most)

    return types.UniTuple(types.int32, 2)(of_row, width), code


@intrinsic
def _rotate_gated(_context: Any, of_gate: Any, of_up: Any, width: Any, factor: Any) -> Any:
    """Of gate * up / (1 + 2^(factor gate)), in place of gate; gives what `_rotate` gives."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of_gate, of_up, width, factor = arguments
        factors, one = spread(builder, factor, FLOATS), ir.Constant(FLOATS, LANES * [1.0])

        def gated(at: Any) -> Any:
            gate, up = (load(builder, row, at, FLOATS) for row in (of_gate, of_up))
            power = exp2(builder, builder.fmul(gate, factors), FEW_POWERS)
            name, all_lanes = "llvm.x86.avx512.rcp14.ps.512", ir.IntType(LANES)((1 << LANES) - 1)
            inverse = call(builder, name, gate, builder.fadd(power, one), gate, all_lanes)
            return builder.fmul(builder.fmul(gate, up), inverse)

        most = _rotate(builder, of_gate, width, gated)
        return context.make_tuple(builder, signature.return_type, most)

    return types.UniTuple(types.int32, 2)(of_gate, of_up, width, factor), code


@intrinsic
def _round(_context: Any, of_row: Any, of_out: Any, n_groups: Any, factor: Any) -> Any:
    """Writes a row times a factor, rounded; gives the sum of products of its first two parts."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        term = cgutils.alloca_once_value(builder, ir.Constant(WORDS, None))
        factor = spread(builder, arguments[3], FLOATS)
        half = ir.Constant(FLOATS, LANES * [ZERO + 0.5])
        with cgutils.for_range(builder, arguments[2]) as loop:
            group, words = builder.mul(loop.index, LONGS(GROUP)), []
            for part in range(GROUP // PART_OF):
                at = builder.add(group, LONGS(part * PART_OF))
                x = load(builder, arguments[0], builder.mul(at, LONGS(BYTES)), FLOATS)
                steps = call(builder, f"llvm.fma.v{LANES}f32", x, x, factor, half)
                words.append(builder.fptosi(steps, WORDS))
                few = builder.trunc(words[-1], ir.VectorType(ir.IntType(8), LANES))
                builder.store(few, pointer(builder, arguments[1], at, few.type), align=1)
            second = builder.sub(words[1], ir.Constant(WORDS, LANES * [ZERO]))
            more = builder.mul(words[0], second)
            builder.store(builder.add(builder.load(term), more), term)
        return _reduced(builder, "add", builder.load(term))

    return types.int32(of_row, of_out, n_groups, factor), code


@njit(**LOOP)
def _round_rotated(buffer: Any, largest: Any, out_d: Any) -> Any:
    """A rotated row as `round_row` leaves it."""
    by_sums, others = largest
    least = FLOAT(INT(by_sums).view(np.float32) * FLOAT(127 / _MOST)).view(np.int32)
    top = INT(max(least, others)).view(np.float32)
    factor = FLOAT(127) / top if top > 0 else FLOAT(0)
    of_row, to = buffer.ctypes.data, out_d.ctypes.data
    term: Any = _round(of_row, to, len(buffer) // GROUP, factor)  # type: ignore[call-arg]
    for p in range(TERM):
        out_d[len(buffer) + p] = BYTE(term >> INT(8 * p))
    return top / FLOAT(127)


@njit(**LOOP)
def round_row(buffer: Any, out_d: Any) -> Any:
    """As `int8.round_row`, and behind it what is of the row alone.

    Each 64 numbers that are mixed are of parts that are multiplied alike.
    """
    largest: Any = _rotate_row(buffer.ctypes.data, len(buffer))  # type: ignore[call-arg]
    return _round_rotated(buffer, largest, out_d)


@njit(**LOOP)
def gate_round_row(gate_d: Any, up_d: Any, factor: Any, out_d: Any) -> Any:
    """As `round_row` of `int8.gate_row`; gate becomes something else."""
    of_gate, of_up, exponent = gate_d.ctypes.data, up_d.ctypes.data, -factor * LOG2_E
    largest: Any = _rotate_gated(of_gate, of_up, len(gate_d), exponent)  # type: ignore[call-arg]
    return _round_rotated(gate_d, largest, out_d) * factor * factor
