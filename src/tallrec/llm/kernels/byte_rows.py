"""What products of eight bits have in common: rows by a tile of weights at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from tallrec.llm.kernels.int8 import BYTE
from tallrec.llm.kernels.native import FLOAT, LONG, LOOP, rows, share
from tallrec.llm.kernels.tiles import COLUMNS, LANES, VECTORS, pointer

ROWS = 6  # that are summed at once, in `VECTORS` each: three quarters of the registers
PER_WORD = 4  # bytes that are multiplied and added up in each lane
BYTES = 4  # of a word
_SOME = 16 * ROWS  # rows that read a tile of weights while a core's second cache has it

LONGS, WORD, SHORT, FLOAT32 = ir.IntType(64), ir.IntType(32), ir.IntType(16), ir.FloatType()
WORDS, FLOATS = ir.VectorType(WORD, LANES), ir.VectorType(FLOAT32, LANES)


def load(builder: Any, address: Any, offset: Any, kind: Any) -> Any:
    """What is some bytes behind an address."""
    return builder.load(pointer(builder, address, offset, kind), align=1)


def _narrowed(builder: Any, floats: Any) -> Any:
    """As `arithmetic.narrow`."""

    def all_of(number: int) -> Any:
        return ir.Constant(WORDS, [number] * LANES)

    bits = builder.bitcast(floats, WORDS)
    odd = builder.and_(builder.lshr(bits, all_of(16)), all_of(1))
    whole = builder.add(bits, builder.add(odd, all_of(0x7FFF)))
    return builder.trunc(builder.lshr(whole, all_of(16)), ir.VectorType(SHORT, LANES))


def write(builder: Any, like: Any, sums: Any, of_steps: Any, y_r: Any) -> None:
    """Writes sums of rows, `VECTORS` each, times the size of steps, as numbers like one."""
    is_float = isinstance(like, types.Float)
    steps = [load(builder, of_steps, LONGS(v * LANES * BYTES), FLOATS) for v in range(VECTORS)]
    for at, total in enumerate(sums):
        r, v = divmod(at, VECTORS)
        y = builder.fmul(builder.sitofp(total, FLOATS), steps[v])
        y = y if is_float else _narrowed(builder, y)
        offset = LONGS(v * LANES * (BYTES if is_float else BYTES // 2))
        builder.store(y, pointer(builder, y_r[r], offset, y.type), align=1)


@njit(**LOOP)
def by_rows(tile: Any, y: Any, x: Any, weights: Any, o: Any) -> None:
    """`COLUMNS` outputs from o on of rows, into as many columns of y.

    Args:
        tile: What sums `ROWS` rows, of their addresses, those of y, and of weights and steps.
        y: Numbers, [n, at least `COLUMNS`].
        x: Rounded rows, [n, i].
        weights: Packed, a row for each tile, and the size of steps, [1, ..].
        o: A multiple of `COLUMNS`.
    """
    (tiles, steps), last = weights, len(x) - 1
    of_w = tiles.ctypes.data + o // COLUMNS * tiles.strides[0]
    places = of_w, steps.ctypes.data + o * BYTES, x.shape[1] // PER_WORD
    of_x, of_y, to_x, to_y = x.ctypes.data, y.ctypes.data, x.strides[0], y.strides[0]
    for r in range(0, len(x), ROWS):
        # Behind the last row it is that again, and becomes the same.
        r1, r2, r3 = min(r + 1, last), min(r + 2, last), min(r + 3, last)
        r4, r5 = min(r + 4, last), min(r + 5, last)
        x012 = of_x + r * to_x, of_x + r1 * to_x, of_x + r2 * to_x
        x345 = of_x + r3 * to_x, of_x + r4 * to_x, of_x + r5 * to_x
        y012 = of_y + r * to_y, of_y + r1 * to_y, of_y + r2 * to_y
        y345 = of_y + r3 * to_y, of_y + r4 * to_y, of_y + r5 * to_y
        tile(y[0, 0], (*x012, *x345), (*y012, *y345), places)


@njit(**LOOP)
def by_tiles(multiply: Any, y: Any, x: Any, weights: Any, width: Any) -> None:
    """The first outputs of rows, up to whole tiles; what multiplies, by one tile."""
    for o in range(LONG(0), width, COLUMNS):
        multiply(y[:, o:], x, weights, o)


@njit(**LOOP)
def some_rows(multiply: Any, job: Any, dtype: Any) -> None:
    """A job's product, all outputs of some rows after each other."""
    y, x = rows(job, 0, dtype), rows(job, 1, BYTE)
    weights = rows(job, 2, np.int8), rows(job, 3, FLOAT)
    start, stop = share(job[0])
    for first in range(start, stop, _SOME):
        end = min(first + _SOME, stop)
        by_tiles(multiply, y[first:end], x[first:end], weights, y.shape[1])
