"""What products of eight bits have in common: rows by a tile of weights at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.core import cgutils
from torch import Tensor

from tallrec.llm.kernels.int8 import BYTE
from tallrec.llm.kernels.native import FLOAT, LONG, LOOP, rows, share
from tallrec.llm.kernels.vectors import FLOATS, LANES, LONGS, load, store_floats

ROWS = 6  # that are summed at once, in `VECTORS` each: three quarters of the registers
PER_WORD = 4  # bytes that are multiplied and added up in each lane
BYTES = 4  # of a word
_SOME = 15 * ROWS  # rows that read a tile of weights while a core's second cache has it


class Packed(NamedTuple):
    """Weights of a product as its loops' `packed` gives them, and the size of their steps."""

    weights: Tensor
    steps_o: Tensor


@njit(**LOOP)
def packed_of(job: Any, number: Any) -> Any:
    """`Packed` weights of a job."""
    return rows(job, number, np.int8), rows(job, number + 1, FLOAT)


def row_addresses(builder: Any, place: Any, count: int) -> tuple[list[Any], list[Any]]:
    """The addresses of rows of x and of y from one on.

    Args:
        builder: What makes the code.
        place: Addresses of x and y, their strides, the first row and the last that there is; behind
            that it is that again, and becomes the same.
        count: Of rows.
    """
    of_x, of_y, to_x, to_y, first, last = cgutils.unpack_tuple(builder, place)
    x_r, y_r = [], []
    for r in range(count):
        row = builder.add(first, LONGS(r))
        row = builder.select(builder.icmp_signed("<", row, last), row, last)
        x_r.append(builder.add(of_x, builder.mul(row, to_x)))
        y_r.append(builder.add(of_y, builder.mul(row, to_y)))
    return x_r, y_r


def write(builder: Any, like: Any, sums: Any, of_steps: Any, y_r: Any) -> None:
    """Writes sums of rows, as many vectors each, times the size of steps, as numbers like one."""
    vectors = len(sums) // len(y_r)
    steps = [load(builder, of_steps, LONGS(v * LANES * BYTES), FLOATS) for v in range(vectors)]
    for at, total in enumerate(sums):
        r, v = divmod(at, vectors)
        y = builder.fmul(builder.sitofp(total, FLOATS), steps[v])
        store_floats(builder, like, y_r[r], LONGS(v), y)


@njit(**LOOP)
def by_rows(tile: Any, y: Any, x: Any, weights: Any, o: Any, shape: Any, words: Any) -> None:
    """A tile's outputs from o on, of rows, into as many columns of y.

    Args:
        tile: What sums some rows, of `row_addresses`, and the addresses of weights and steps.
        y: Numbers, [n, at least the tile's columns].
        x: Rounded rows, [n, i].
        weights: Packed, a row for each tile, and the size of steps, [1, ..].
        o: A multiple of the tile's columns, or where the last one is to begin instead of there.
        shape: Rows and columns of a tile.
        words: Of a row, as the tile wants to know them.
    """
    (tiles, steps), (count, columns) = weights, shape
    of_w = tiles.ctypes.data + (o + columns - 1) // columns * tiles.strides[0]
    places = of_w, steps.ctypes.data + o * BYTES, *words
    of_x, of_y, to_x, to_y = x.ctypes.data, y.ctypes.data, x.strides[0], y.strides[0]
    for r in range(0, len(x), count):
        tile(y[0, 0], (of_x, of_y, to_x, to_y, r, len(x) - 1), places)


@njit(**LOOP)
def by_tiles(multiply: Any, y: Any, x: Any, weights: Any, width: Any, columns: Any) -> None:
    """The first outputs of rows, up to a width; what multiplies, by one tile of some columns.

    The last one begins in the one before it, where whole ones are wider than all outputs.
    """
    for o in range(LONG(0), width, columns):
        first = min(o, width - columns)
        multiply(y[:, first:], x, weights, first)


@njit(**LOOP)
def some_rows(multiply_all: Any, job: Any, dtype: Any) -> None:
    """A job's product, all outputs of some rows after each other."""
    y, x = rows(job, 0, dtype), rows(job, 1, BYTE)
    weights = rows(job, 2, np.int8), rows(job, 3, FLOAT)
    start, stop = share(job[0])
    for first in range(start, stop, _SOME):
        end = min(first + _SOME, stop)
        multiply_all(y[first:end], x[first:end], weights, y.shape[1])
