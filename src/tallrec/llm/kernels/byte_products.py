"""Products of eight bits by the processor's instructions for them (VNNI of AVX-512 or AVX).

Six rows by four vectors of outputs are summed at a time (by two with AVX), in three quarters of the
registers, and nothing else is written than what is wanted of them; torch's product takes up to a
tenth more time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from tallrec.llm.kernels.byte_rows import (
    BYTES,
    PER_WORD,
    ROWS,
    by_rows,
    by_tiles,
    row_addresses,
    some_rows,
    write,
)
from tallrec.llm.kernels.int8 import BYTE, ZERO, multiplied, rounded
from tallrec.llm.kernels.native import INT, LOOP, PART, by_dtype, compiled, rows, run, share
from tallrec.llm.kernels.tiles import COLUMNS, VECTORS
from tallrec.llm.kernels.vectors import IS_LONG, LANES, LONGS, WORD, WORDS, call, can, load, spread

__all__ = ["IN_USE", "multiply_all", "packed", "product", "rounded"]

_CAN = can("avx512vnni") if IS_LONG else can("avxvnni")
IN_USE = _CAN and not can("amx-int8")  # torch has AMX's, larger ones
_ADD_PRODUCTS = f"llvm.x86.avx512.vpdpbusd.{8 * BYTES * LANES}"  # of uint8 by int8


@intrinsic
def _sum(_context: Any, like: Any, of_rows: Any, places: Any) -> Any:
    """Y of some rows and `COLUMNS` outputs.

    Args:
        like: A number of y.
        of_rows: As `row_addresses` takes them.
        places: The addresses of packed weights and the size of steps, and a row's words.
    """

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        x_r, y_r = row_addresses(builder, arguments[1], ROWS)
        of_w, of_steps, n_words = cgutils.unpack_tuple(builder, arguments[2])
        vectors = [LONGS(v * LANES * BYTES) for v in range(VECTORS)]
        starts = [load(builder, of_w, v, WORDS) for v in vectors]
        sums = [cgutils.alloca_once_value(builder, start) for _ in range(ROWS) for start in starts]
        with cgutils.for_range(builder, n_words) as loop:
            row = builder.mul(builder.add(loop.index, LONGS(1)), LONGS(COLUMNS * BYTES))
            w_v = [load(builder, builder.add(of_w, row), v, WORDS) for v in vectors]
            word = builder.mul(loop.index, LONGS(BYTES))
            for r in range(ROWS):
                x = spread(builder, load(builder, x_r[r], word, WORD), WORDS)
                for total, w in zip(sums[r * VECTORS :], w_v, strict=False):
                    before = builder.load(total)
                    builder.store(call(builder, _ADD_PRODUCTS, before, before, x, w), total)
        write(builder, like, [builder.load(total) for total in sums], of_steps, y_r)
        return context.get_dummy_value()

    return types.void(like, of_rows, places), code


@njit(**PART)
def multiply(y: Any, x: Any, weights: Any, o: Any) -> None:
    """A tile's outputs; see `byte_rows.by_rows`."""
    by_rows(_sum, y, x, weights, o, (ROWS, COLUMNS), (x.shape[1] // PER_WORD,))


@njit(**LOOP)
def multiply_all(y: Any, x: Any, weights: Any, width: Any) -> None:
    """The first outputs of rows, up to whole tiles."""
    by_tiles(multiply, y, x, weights, width, COLUMNS)


@njit(**LOOP)
def _pack(job: Any, _dtype: Any) -> None:
    whole, out = rows(job, 0, BYTE), rows(job, 1, np.int8)
    words, (start, stop) = whole.shape[1] // PER_WORD, share(job[0])
    for o in range(start, stop):
        whole_i, total = whole[o], INT(0)
        tile, column = out[o // COLUMNS], o % COLUMNS * PER_WORD
        for w in range(words):
            to = (w + 1) * COLUMNS * PER_WORD + column
            for p in range(PER_WORD):
                one = INT(whole_i[w * PER_WORD + p]) - INT(ZERO)
                tile[to + p] = np.int8(one)
                total -= INT(one * ZERO)
        for p in range(PER_WORD):
            tile[column + p] = np.int8(INT(total >> INT(8 * p)))


@compiled
def _pack_loop(job: Any) -> None:
    by_dtype(_pack, job)


def packed(whole_oi: Tensor) -> Tensor:
    """Weights as `product` reads them: four inputs side by side, a tile's outputs together.

    Args:
        whole_oi: uint8, 128 for 0; both widths are multiples of 64.

    Returns:
        int8 [o / c, (1 + i / 4) 4 c], of tiles of c columns; before the weights, what sums begin
        with, as inputs are unsigned, in int32.
    """
    o, i = whole_oi.shape
    out = torch.empty(o // COLUMNS, (1 + i // PER_WORD) * PER_WORD * COLUMNS, dtype=torch.int8)
    run(_pack_loop, whole_oi, out)
    return out


@njit(**LOOP)
def _product(job: Any, dtype: Any) -> None:
    some_rows(multiply_all, job, dtype)


@compiled
def _product_loop(job: Any) -> None:
    by_dtype(_product, job)


product = partial(multiplied, _product_loop)
