"""Products of eight bits by the processor's instructions for them (AVX-512 VNNI).

Six rows by 64 outputs are summed at a time, in 24 of the 32 registers, and nothing else is written
than what is wanted of them; torch's product takes up to a tenth more time.
"""

from __future__ import annotations

from functools import partial
from itertools import product as pairs_of
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from tallrec.llm.kernels.int8 import BYTE, ZERO, multiplied
from tallrec.llm.kernels.native import (
    FLOAT,
    INT,
    LONG,
    LOOP,
    PART,
    by_dtype,
    compiled,
    rows,
    run,
    share,
)
from tallrec.llm.kernels.tiles import COLUMNS, IS_LONG, LANES, VECTORS, call, can, pointer, spread

ROWS = 6  # that are summed at once
_SOME = 16 * ROWS  # rows that read a tile of weights while a core's second cache has it
_PER_WORD = 4  # bytes that an instruction multiplies and adds up in each lane
_BYTES = 4  # of a word

_LONG, _WORD, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
_WORDS, _FLOATS = ir.VectorType(_WORD, LANES), ir.VectorType(_FLOAT, LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)
_ADD_PRODUCTS = "llvm.x86.avx512.vpdpbusd.512"  # of uint8 by int8


def in_bytes() -> bool:
    """Whether products are quick here: AMX's, which torch has, are larger."""
    return IS_LONG and can("avx512vnni") and not can("amx-int8")


def _all(number: int) -> Any:
    return ir.Constant(_WORDS, [number] * LANES)


def _narrowed(builder: Any, floats: Any) -> Any:
    """As `arithmetic.narrow`."""
    bits = builder.bitcast(floats, _WORDS)
    odd = builder.and_(builder.lshr(bits, _all(16)), _all(1))
    whole = builder.add(bits, builder.add(odd, _all(0x7FFF)))
    return builder.trunc(builder.lshr(whole, _all(16)), _SHORTS)


@intrinsic
def _tile(_context: Any, like: Any, of_x: Any, of_y: Any, places: Any) -> Any:
    """Y of some rows and `COLUMNS` outputs.

    Args:
        like: A number of y.
        of_x: The rows' addresses.
        of_y: Where what becomes of them is to be.
        places: The addresses of weights, of what is taken off sums, and of the size of steps, and
            how many words a row has.
    """

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        x_r, y_r = (cgutils.unpack_tuple(builder, arguments[n]) for n in (1, 2))
        of_w, of_less, of_steps, n_words = cgutils.unpack_tuple(builder, arguments[3])

        def load(address: Any, offset: Any, kind: Any) -> Any:
            return builder.load(pointer(builder, address, offset, kind), align=_BYTES)

        vectors = [_LONG(v * LANES * _BYTES) for v in range(VECTORS)]
        tile = list(pairs_of(range(ROWS), range(VECTORS)))
        starts = [builder.neg(load(of_less, v, _WORDS)) for v in vectors]
        sums = [cgutils.alloca_once(builder, _WORDS) for _ in tile]
        for total, (_, v) in zip(sums, tile, strict=True):
            builder.store(starts[v], total)
        with cgutils.for_range(builder, n_words) as loop:
            w = builder.add(of_w, builder.mul(loop.index, _LONG(COLUMNS * _BYTES)))
            w_v = [load(w, v, _WORDS) for v in vectors]
            word = builder.mul(loop.index, _LONG(_BYTES))
            x_all = [spread(builder, load(x, word, _WORD), _WORDS) for x in x_r]
            for total, (r, v) in zip(sums, tile, strict=True):
                before = builder.load(total)
                builder.store(call(builder, _ADD_PRODUCTS, before, before, x_all[r], w_v[v]), total)
        steps = [load(of_steps, v, _FLOATS) for v in vectors]
        for total, (r, v) in zip(sums, tile, strict=True):
            y = builder.fmul(builder.sitofp(builder.load(total), _FLOATS), steps[v])
            y = y if isinstance(like, types.Float) else _narrowed(builder, y)
            size = LANES * (_BYTES if isinstance(like, types.Float) else _BYTES // 2)
            place = pointer(builder, y_r[r], _LONG(v * size), y.type)
            builder.store(y, place, align=size // LANES)
        return context.get_dummy_value()

    return types.void(like, of_x, of_y, places), code


@njit(**PART)
def multiply(y: Any, x: Any, weights: Any, o: Any) -> None:
    """`COLUMNS` outputs from o on of rows, into as many columns of y.

    Args:
        y: Numbers, [n, at least `COLUMNS`].
        x: Rounded rows, [n, i].
        weights: As `packed` gives them, and the size of steps; each [1, ..] but the first.
        o: A multiple of `COLUMNS`.
    """
    (tiles, less, steps), last = weights, len(x) - 1
    of_w, n_words = tiles.ctypes.data + o * x.shape[1], x.shape[1] // _PER_WORD
    of_o = less.ctypes.data + o * _BYTES, steps.ctypes.data + o * _BYTES
    places, of_x, of_y = (of_w, *of_o, n_words), x.ctypes.data, y.ctypes.data
    to_x, to_y = x.strides[0], y.strides[0]
    for r in range(0, len(x), ROWS):
        # Behind the last row it is that again, and becomes the same.
        r1, r2, r3 = min(r + 1, last), min(r + 2, last), min(r + 3, last)
        r4, r5 = min(r + 4, last), min(r + 5, last)
        x012 = of_x + r * to_x, of_x + r1 * to_x, of_x + r2 * to_x
        x345 = of_x + r3 * to_x, of_x + r4 * to_x, of_x + r5 * to_x
        y012 = of_y + r * to_y, of_y + r1 * to_y, of_y + r2 * to_y
        y345 = of_y + r3 * to_y, of_y + r4 * to_y, of_y + r5 * to_y
        _tile(y[0, 0], (*x012, *x345), (*y012, *y345), places)  # type: ignore[call-arg]


@njit(**LOOP)
def multiply_all(y: Any, x: Any, weights: Any, width: Any) -> None:
    """The first outputs of rows, up to whole tiles; see `multiply`."""
    for o in range(LONG(0), width, COLUMNS):
        multiply(y[:, o:], x, weights, o)


@njit(**LOOP)
def _pack(job: Any, _dtype: Any) -> None:
    whole, out, less = rows(job, 0, BYTE), rows(job, 1, np.int8), rows(job, 2, INT)[0]
    words, (start, stop) = whole.shape[1] // _PER_WORD, share(job[0])
    for o in range(start, stop):
        whole_i, total = whole[o], INT(0)
        tile, column = out[o // COLUMNS * words :], o % COLUMNS * _PER_WORD
        for w in range(words):
            for p in range(_PER_WORD):
                one = INT(whole_i[w * _PER_WORD + p]) - INT(ZERO)
                tile[w, column + p] = np.int8(one)
                total += INT(one)
        less[o] = INT(total * INT(ZERO))


@compiled
def _pack_loop(job: Any) -> None:
    by_dtype(_pack, job)


def packed(whole_oi: Tensor) -> tuple[Tensor, Tensor]:
    """Weights as `product` reads them: four inputs side by side, a tile's outputs together.

    Args:
        whole_oi: uint8, 128 for 0; both widths are multiples of 64.

    Returns:
        int8 [o / c * i / 4, 4 c], of tiles of c columns; int32 [1, o], to be taken off sums.
    """
    o, i = whole_oi.shape
    out = torch.empty(o // COLUMNS * i // _PER_WORD, _PER_WORD * COLUMNS, dtype=torch.int8)
    less = torch.empty(1, o, dtype=torch.int32)
    run(_pack_loop, whole_oi, out, less)
    return out, less


@njit(**LOOP)
def _product(job: Any, dtype: Any) -> None:
    y, x = rows(job, 0, dtype), rows(job, 1, BYTE)
    weights = rows(job, 2, np.int8), rows(job, 3, INT), rows(job, 4, FLOAT)
    start, stop = share(job[0])
    for first in range(start, stop, _SOME):
        end = min(first + _SOME, stop)
        multiply_all(y[first:end], x[first:end], weights, y.shape[1])


@compiled
def _product_loop(job: Any) -> None:
    by_dtype(_product, job)


product = partial(multiplied, _product_loop)
