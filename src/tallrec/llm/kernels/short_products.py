"""Products of eight bits where the processor has no instructions for them, but for pairs of int16.

There torch's own is slow, or wrong: two products of eight bits overflow 16. Here numbers are
widened to 16 bits in the first cache, where sums of two products are exact in 32. Of these there
are half as many as of pairs, which leaves more of a core's ports busy (Winograd, 1968):

    x_0 w_0 + x_1 w_1 = (x_0 + w_1) (x_1 + w_0) - x_0 x_1 - w_0 w_1

What is taken off at the end is a sum of a row's own numbers, and one of an output's own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from tallrec.llm.kernels.arithmetic import narrow
from tallrec.llm.kernels.int8 import BYTE, ZERO, multiplied
from tallrec.llm.kernels.native import FLOAT, INT, LOOP, by_dtype, compiled, rows, run, share
from tallrec.llm.kernels.tiles import (
    COLUMNS,
    IS_LONG,
    LANES,
    ROWS,
    VECTORS,
    call,
    can,
    pointer,
    spread,
    up,
)

_SOME = 24 * ROWS  # rows that a part of the weights is widened for
_MOST = 5120 // COLUMNS  # words of a row that are multiplied at a time: they fit a first cache
_SHORT, _BYTES = np.int16, 4  # of a word, which is two of int16
_WIDTH = 64  # outputs whose sums wait for being written
_OF_X, _OF_W, _OF_SUMS = (_BYTES * n for n in (_MOST + 16, COLUMNS, _WIDTH))  # from row to row

_LONG, _WORD = ir.IntType(64), ir.IntType(32)
_WORDS, _SHORTS = ir.VectorType(_WORD, LANES), ir.VectorType(ir.IntType(16), 2 * LANES)
_ADD_PRODUCTS = "llvm.x86.avx512.pmaddw.d.512" if IS_LONG else "llvm.x86.avx2.pmadd.wd"


def in_shorts() -> bool:
    """Whether the processor has products of pairs of int16."""
    return can("avx512bw") if IS_LONG else can("avx2")


@intrinsic
def _tile(_context: Any, places: Any, add: Any) -> Any:
    """Sums of `ROWS` rows and `COLUMNS` outputs.

    Args:
        places: Where x, weights and sums are, and how many pairs of words are to be summed.
        add: Whether to what the sums are.
    """
    vectors = [v * LANES * _BYTES for v in range(VECTORS)]

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        of_x, of_w, of_sums, n_pairs = cgutils.unpack_tuple(builder, arguments[0])

        def place_of(address: Any, offset: int, kind: Any) -> Any:
            return pointer(builder, address, _LONG(offset), kind)

        def load(*of: Any) -> Any:
            return builder.load(place_of(*of), align=_BYTES)

        places = [(of_sums, r * _OF_SUMS + v, _WORDS) for r in range(ROWS) for v in vectors]
        sums = [cgutils.alloca_once_value(builder, ir.Constant(_WORDS, None)) for _ in places]
        with builder.if_then(arguments[1]):
            for total, place in zip(sums, places, strict=True):
                builder.store(load(*place), total)
        with cgutils.for_range(builder, n_pairs) as loop:
            x = builder.add(of_x, builder.mul(loop.index, _LONG(2 * _BYTES)))
            w = builder.add(of_w, builder.mul(loop.index, _LONG(2 * _OF_W)))
            pairs = [(load(w, _OF_W + v, _SHORTS), load(w, v, _SHORTS)) for v in vectors]
            totals = iter(sums)
            for r in range(ROWS):
                words = (load(x, r * _OF_X + word * _BYTES, _WORD) for word in range(2))
                spreads = [builder.bitcast(spread(builder, x, _WORDS), _SHORTS) for x in words]
                for pair in pairs:
                    factors = [builder.add(*both) for both in zip(spreads, pair, strict=True)]
                    total = next(totals)
                    before = builder.load(total)
                    products = call(builder, _ADD_PRODUCTS, before, *factors)
                    builder.store(builder.add(before, products), total)
        for total, place in zip(sums, places, strict=True):
            builder.store(builder.load(total), place_of(*place), align=_BYTES)
        return context.get_dummy_value()

    return types.void(places, add), code


@njit(**LOOP)
def _widen(x_i: Any, out_i: Any) -> Any:
    """Bytes as int16; gives what is to be taken off their sums."""
    excess = INT(0)
    for j in range(len(x_i)):
        out_i[j] = _SHORT(_SHORT(x_i[j]) - _SHORT(ZERO))
    for j in range(0, len(x_i), 4):
        excess += INT(INT(out_i[j]) * INT(out_i[j + 2]))
        excess += INT(INT(out_i[j + 1]) * INT(out_i[j + 3]))
    return excess


@njit(**LOOP)
def _pack(job: Any, _dtype: Any) -> None:
    whole, out, excess = rows(job, 0, BYTE), rows(job, 1, np.int8), rows(job, 2, INT)
    row, words = np.zeros(whole.shape[1], _SHORT), whole.shape[1] // 2
    start, stop = share(job[0])
    for o in range(start, stop):
        excess[o, 0] = _widen(whole[o], row)
        tile, column = out[o // COLUMNS * words :], o % COLUMNS * 2
        for w in range(words):
            tile[w, column], tile[w, column + 1] = row[2 * w], row[2 * w + 1]


@compiled
def _pack_loop(job: Any) -> None:
    by_dtype(_pack, job)


def packed(whole_oi: Tensor) -> tuple[Tensor, Tensor]:
    """Weights as `product` reads them: pairs of inputs side by side, a tile's outputs together.

    Args:
        whole_oi: uint8, 128 for 0; both widths are multiples of 64.

    Returns:
        int8 [o / c * i / 2, 2 c], of tiles of c columns; int32 [o, 1], to be taken off sums.
    """
    o, i = whole_oi.shape
    out = torch.empty(o // COLUMNS * i // 2, 2 * COLUMNS, dtype=torch.int8)
    excess = torch.empty(o, 1, dtype=torch.int32)
    run(_pack_loop, whole_oi, out, excess)
    return out, excess


@njit(**LOOP)
def _multiply(some: Any, weights: Any, part: Any, sums: Any, n: Any, add: Any) -> None:
    """Sums of n rows and a tile's outputs."""
    for j in range(len(weights)):
        part[j] = weights[j]
    for r in range(0, n, ROWS):
        of_x, of_sums = some.ctypes.data + r * _OF_X, sums.ctypes.data + r * _OF_SUMS
        places = of_x, part.ctypes.data, of_sums, len(weights) // (4 * COLUMNS)
        _tile(places, add)  # type: ignore[call-arg]


@njit(**LOOP)
def _product(job: Any, dtype: Any) -> None:
    y, x, weights = rows(job, 0, dtype), rows(job, 1, BYTE), rows(job, 2, np.int8).reshape(-1)
    excess_o, steps = rows(job, 3, INT)[0], rows(job, 4, FLOAT)[0]
    words = x.shape[1] // 2
    n_parts = (words + _MOST - 1) // _MOST
    n_words = up((words + n_parts - 1) // n_parts, 2)
    some, excess = np.zeros((n_parts, _SOME, _OF_X // 2), _SHORT), np.zeros(_SOME, INT)
    part, sums = np.zeros(_MOST * 2 * COLUMNS, _SHORT), np.zeros((_SOME, _WIDTH), INT)
    start, stop = share(job[0])
    for first in range(start, stop, _SOME):
        n = min(_SOME, stop - first)
        for r in range(n):
            excess[r] = INT(0)
            for p in range(n_parts):
                of_x = x[first + r, 2 * p * n_words : 2 * (p + 1) * n_words]
                excess[r] += _widen(of_x, some[p, r])
        for o in range(0, y.shape[1], _WIDTH):
            for column in range(0, _WIDTH, COLUMNS):
                of = weights[2 * (o + column) * words : 2 * (o + column + COLUMNS) * words]
                for p in range(n_parts):
                    at, to = 2 * COLUMNS * p * n_words, 2 * COLUMNS * (p + 1) * n_words
                    _multiply(some[p], of[at:to], part, sums[:, column:], n, p > 0)
            steps_o, less_o = steps[o : o + _WIDTH], excess_o[o : o + _WIDTH]
            for r in range(n):
                y_o, sum_o, less = y[first + r, o : o + _WIDTH], sums[r], excess[r]
                for j in range(_WIDTH):
                    whole = INT(INT(sum_o[j] - less) - less_o[j])
                    y_o[j] = narrow(FLOAT(whole) * steps_o[j], y_o[j])


@compiled
def _product_loop(job: Any) -> None:
    by_dtype(_product, job)


product = partial(multiplied, _product_loop)
