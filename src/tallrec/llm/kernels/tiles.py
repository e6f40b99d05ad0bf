"""Products of small matrices inside compiled loops, on the vectors of a core.

A product is C (+)= A B in float32, of words: a float32 is one, in bfloat16 two numbers that are
added up are. A row of A is a row of words that is read one by one, a row of B is `COLUMNS` of them
or more that are read as vectors.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tallrec.llm.kernels.native import LOOP, PART
from tallrec.llm.kernels.vectors import (
    FLOATS,
    HAS_PAIRS,
    IS_LONG,
    LANES,
    LONGS,
    WORD,
    WORDS,
    BFloat,
    call,
    can,
    pointer,
    spread,
)
from tallrec.llm.processor import multiplies_bfloat16_fast

VECTORS = 4 if IS_LONG else 2
ROWS, COLUMNS = 4, LANES * VECTORS  # of C that are computed at once, in half of all vectors
TALL = 4 * ROWS  # with one vector each, as many sums with long vectors
_BYTES = 4  # of a word


_FLOAT = ir.FloatType()
BFLOATS = ir.VectorType(BFloat(), 2 * LANES)


def _add_products(builder: Any, total: Any, one: Any, other: Any) -> Any:
    """Total and the products of two vectors of words, float32 or pairs of bfloat16."""
    if one.type == FLOATS:
        return call(builder, f"llvm.fma.v{LANES}f32", total, one, other, total)
    pairs = [builder.bitcast(x, BFLOATS) for x in (one, other)]
    return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", total, total, *pairs)


def _tile_of(like: Any, n_rows: int, n_vectors: int) -> Any:
    """Code for C (+)= A B of some rows and vectors; see `_tile`."""
    word, words = (_FLOAT, FLOATS) if isinstance(like, types.Float) else (WORD, WORDS)
    vectors = [LONGS(v * LANES * _BYTES) for v in range(n_vectors)]

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        a, b, c = (cgutils.unpack_tuple(builder, arguments[1])[i : i + 2] for i in (0, 2, 4))
        steps = cgutils.unpack_tuple(builder, arguments[1])[6]

        def of_row(place: Any, row: Any, offset: Any, kind: Any) -> Any:
            address = builder.add(place[0], builder.mul(place[1], row))
            return pointer(builder, address, offset, kind)

        def load(*of: Any) -> Any:
            return builder.load(of_row(*of), align=_BYTES)

        zero = ir.Constant(FLOATS, None)
        of_c = [(c, LONGS(r), vector, FLOATS) for r in range(n_rows) for vector in vectors]
        sums = [cgutils.alloca_once_value(builder, zero) for _ in of_c]
        with builder.if_then(arguments[2]):
            for total, place in zip(sums, of_c, strict=True):
                builder.store(load(*place), total)
        with cgutils.for_range(builder, steps) as loop:
            column = builder.mul(loop.index, LONGS(_BYTES))
            b_v = [load(b, loop.index, vector, words) for vector in vectors]
            a_r = [spread(builder, load(a, LONGS(r), column, word), words) for r in range(n_rows)]
            for total, (one, other) in zip(sums, product(a_r, b_v), strict=True):
                builder.store(_add_products(builder, builder.load(total), one, other), total)
        for total, place in zip(sums, of_c, strict=True):
            builder.store(builder.load(total), of_row(*place), align=_BYTES)
        return context.get_dummy_value()

    return code


@intrinsic
def _tile(_context: Any, like: Any, places: Any, add: Any) -> Any:
    """C (+)= A B.

    Args:
        like: A word.
        places: The addresses of A, B and C, each with the bytes from row to row, and A's columns.
        add: Whether to what C is.
    """
    return types.void(like, places, add), _tile_of(like, ROWS, VECTORS)


@intrinsic
def _column(_context: Any, like: Any, places: Any, add: Any) -> Any:
    """The same of `TALL` rows and one vector."""
    return types.void(like, places, add), _tile_of(like, TALL, 1)


@intrinsic
def _transpose(_context: Any, places: Any) -> Any:
    """Of a square of float32, as many each way as a vector has.

    Args:
        places: The addresses of the one and the other, each with the bytes from row to row.
    """

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        one, one_row, other, other_row = cgutils.unpack_tuple(builder, arguments[0])

        def of_row(address: Any, row: Any, r: int) -> Any:
            return pointer(builder, address, builder.mul(row, LONGS(r)), FLOATS)

        rows = [builder.load(of_row(one, one_row, r), align=_BYTES) for r in range(LANES)]
        # Squares of this size change places across the diagonal.
        for step in (step for step in (1, 2, 4, 8) if step < LANES):
            for r in (r for r in range(LANES) if not r & step):
                pair = rows[r], rows[r + step]
                lower = [c + LANES - step if c & step else c for c in range(LANES)]
                upper = [c + LANES if c & step else c + step for c in range(LANES)]
                rows[r], rows[r + step] = (
                    builder.shuffle_vector(*pair, ir.Constant(WORDS, lanes))
                    for lanes in (lower, upper)
                )
        for r, row in enumerate(rows):
            builder.store(row, of_row(other, other_row, r), align=_BYTES)
        return context.get_dummy_value()

    return types.void(places), code


_HAS_TILES = IS_LONG or can("avx2", "fma")
_HAS_AMX = can("amx-bf16")


def in_tiles(dtype: torch.dtype) -> bool:
    """Whether products of a dtype are quick here: AMX's, which torch has, are larger."""
    return _HAS_TILES and not (_HAS_AMX and dtype == torch.bfloat16)


def in_floats(dtype: torch.dtype) -> bool:
    """Whether words are best float32: of bfloat16, where it is not multiplied as fast."""
    return dtype == torch.bfloat16 and not (HAS_PAIRS and multiplies_bfloat16_fast())


@njit(**LOOP)
def up(n: Any, step: Any) -> Any:
    """The next multiple of a step."""
    return (n + step - 1) // step * step


@njit(**PART)
def multiply(a: Any, b: Any, c: Any, n_rows: Any, width: Any, steps: Any, add: Any) -> None:
    """C (+)= A B, for the first rows and columns of C; both up to whole tiles.

    Args:
        a: Numbers or words, [rows, at least steps words].
        b: Words, [at least steps, columns].
        c: float32, [rows, columns].
        n_rows: Rows of C.
        width: Columns of C.
        steps: Words of a row of A.
        add: Whether to what C is.
    """
    for column in range(0, width, COLUMNS):
        for row in range(0, n_rows, ROWS):
            of_a, of_b = a.ctypes.data + row * a.strides[0], b.ctypes.data + column * _BYTES
            of_c = c.ctypes.data + row * c.strides[0] + column * _BYTES
            places = of_a, a.strides[0], of_b, b.strides[0], of_c, c.strides[0], steps
            _tile(b[0, 0], places, add)  # type: ignore[call-arg]


@njit(**PART)
def multiply_column(a: Any, b: Any, c: Any, steps: Any) -> None:
    """C = A B, of `TALL` rows and the first `LANES` columns; see `multiply`."""
    of_b, of_c = (b.ctypes.data, b.strides[0]), (c.ctypes.data, c.strides[0])
    places = a.ctypes.data, a.strides[0], *of_b, *of_c, steps
    _column(b[0, 0], places, False)  # type: ignore[call-arg]


@njit(**PART)
def transpose(x: Any, column: Any, out: Any) -> None:
    """`LANES` columns of x from one on, which are the rows of out; x has whole times that rows."""
    for row in range(0, len(x), LANES):
        of_x = x.ctypes.data + row * x.strides[0] + column * _BYTES
        places = of_x, x.strides[0], out.ctypes.data + row * _BYTES, out.strides[0]
        _transpose(places)  # type: ignore[call-arg]
