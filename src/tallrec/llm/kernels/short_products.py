"""Products of eight bits where the processor has no instructions for them (AVX2, AVX-512BW).

It has some that add two products of eight bits up in 16, and sums in 16 bits, at the rate at which
others have products of eight bits. What does not fit is kept off by how rows are rounded, so that
all is exact:

- An unsigned input is 255 at most, so two products fit if the two weights are 128 together.
- Of the sum of x w over a set of inputs, sums in 16 bits tell what it is modulo 2^16, whatever
  they pass on the way; and by Cauchy and Schwarz it is |x| |w| at most, over the set.

A set is two neighbours of each 64 inputs, in 9 runs of 64 at most: a large input has few others
with it. Rows are rounded to steps of 1/127 of their largest number, but to larger ones where a set
would be too long for `short_sets.X` or `W`.
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

from tallrec.llm.kernels.arithmetic import copy
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
from tallrec.llm.kernels.int8 import BYTE, ZERO, multiplied, round_rotated
from tallrec.llm.kernels.native import FLOAT, INT, LOOP, PART, by_dtype, compiled, rows, run, share
from tallrec.llm.kernels.rotation import rotate
from tallrec.llm.kernels.short_sets import (
    IN_USE,
    MOST,
    RUN,
    W,
    ends_of,
    groups_of,
    in_shorts,
    least_top,
)
from tallrec.llm.kernels.tiles import COLUMNS, VECTORS
from tallrec.llm.kernels.vectors import IS_LONG, LANES, LONGS, WORD, WORDS, call, load, spread

__all__ = ["IN_USE", "in_shorts", "multiply_all", "packed", "product", "rounded"]

_SHORTS, _BYTES = (
    ir.VectorType(kind, n * LANES) for kind, n in ((ir.IntType(16), 2), (ir.IntType(8), 4))
)
_ONES = ir.Constant(_SHORTS, [1] * 2 * LANES)
_MULTIPLY = "llvm.x86.avx512.pmaddubs.w.512" if IS_LONG else "llvm.x86.avx2.pmadd.ub.sw"
_ADD_PAIRS = "llvm.x86.avx512.pmaddw.d.512" if IS_LONG else "llvm.x86.avx2.pmadd.wd"
_WORDS_A_RUN = RUN // PER_WORD


def _add_products(builder: Any, shorts: Any, x_r: list[tuple[Any, Any]], w_v: Any) -> None:
    """Adds those of a word of each row and as many weights to sums in 16 bits."""
    for r, of_x in enumerate(x_r):
        x = builder.bitcast(spread(builder, load(builder, *of_x, WORD), WORDS), _BYTES)
        for total, w in zip(shorts[r * VECTORS :], w_v, strict=False):
            before = builder.load(total)
            products = call(builder, _MULTIPLY, before, x, w)
            builder.store(builder.add(before, products), total)


@intrinsic
def _sum(_context: Any, like: Any, of_rows: Any, places: Any) -> Any:
    """Y of some rows and `COLUMNS` outputs; see `byte_products`."""

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        x_r, y_r = row_addresses(builder, arguments[1], ROWS)
        of_w, of_steps, n_words = cgutils.unpack_tuple(builder, arguments[2])
        vectors, step = [LONGS(v * LANES * BYTES) for v in range(VECTORS)], COLUMNS * BYTES
        tile = [(r, v) for r in range(ROWS) for v in range(VECTORS)]
        sums = [cgutils.alloca_once_value(builder, ir.Constant(WORDS, None)) for _ in tile]
        shorts = [cgutils.alloca_once(builder, _SHORTS) for _ in tile]
        w_at = cgutils.alloca_once_value(builder, of_w)

        def next_w(kind: Any) -> list[Any]:
            at = builder.load(w_at)
            builder.store(builder.add(at, LONGS(step)), w_at)
            return [load(builder, at, v, kind) for v in vectors]

        n_runs = builder.udiv(n_words, LONGS(_WORDS_A_RUN))
        n_groups = groups_of(builder, n_runs)
        with cgutils.for_range(builder, n_groups) as group:
            first, last = ends_of(builder, group.index, n_groups, n_runs)
            with cgutils.for_range(builder, LONGS(_WORDS_A_RUN)) as place:
                starts = next_w(_SHORTS)
                for total, (_, v) in zip(shorts, tile, strict=True):
                    builder.store(starts[v], total)
                at = builder.mul(place.index, LONGS(BYTES))
                with cgutils.for_range(builder, last, start=first) as one:
                    word = builder.add(at, builder.mul(one.index, LONGS(RUN)))
                    _add_products(builder, shorts, [(x, word) for x in x_r], next_w(_BYTES))
                for total, short in zip(sums, shorts, strict=True):
                    before = builder.load(total)
                    more = call(builder, _ADD_PAIRS, before, builder.load(short), _ONES)
                    builder.store(builder.add(before, more), total)
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
def _round(job: Any, dtype: Any) -> None:
    weights, out, steps = rows(job, 0, dtype), rows(job, 1, BYTE), rows(job, 2, FLOAT)
    buffer = np.empty(weights.shape[1], FLOAT)
    start, stop = share(job[0])
    for o in range(start, stop):
        copy(buffer, weights[o])
        rotate(buffer)
        most = FLOAT(0)
        for j in range(0, len(buffer), 2):
            pair = FLOAT(abs(buffer[j]) + abs(buffer[j + 1]))
            most = pair if pair > most else most  # 127 steps at most, so 128 when rounded
        steps[o, 0] = round_rotated(buffer, out[o], max(most, least_top(buffer, W)))


@compiled
def _round_loop(job: Any) -> None:
    by_dtype(_round, job)


def rounded(weight_oi: Tensor) -> tuple[Tensor, Tensor]:
    """Weights as `int8.rounded` gives them, in steps that keep sums within 16 bits."""
    weight_oi = weight_oi.contiguous()
    out, steps = torch.empty(weight_oi.shape, dtype=torch.uint8), torch.empty(len(weight_oi), 1)
    run(_round_loop, weight_oi, out, steps)
    return out, steps


@njit(**LOOP)
def _pack_set(tile: Any, at: Any, x_i: Any, step: Any) -> None:
    """Two neighbours of each run, and before them what their sums begin with."""
    start = INT(0)
    for j in range(0, len(x_i), RUN):
        for p in range(2):
            one = INT(x_i[j + p]) - INT(ZERO)
            tile[at + (1 + j // RUN) * step + p] = np.int8(one)
            start -= INT(one * ZERO)
    for p in range(2):
        tile[at + p] = np.int8(INT(start >> INT(8 * p)))


@njit(**LOOP)
def _pack(job: Any, _dtype: Any) -> None:
    whole, out = rows(job, 0, BYTE), rows(job, 1, np.int8)
    n_runs, step, (start, stop) = whole.shape[1] // RUN, COLUMNS * PER_WORD, share(job[0])
    n_groups = (n_runs + MOST - 1) // MOST
    for o in range(start, stop):
        at = o % COLUMNS * PER_WORD
        for group in range(n_groups):
            first, last = n_runs * group // n_groups, n_runs * (group + 1) // n_groups
            of_group = whole[o, first * RUN : last * RUN]
            for word in range(0, RUN, PER_WORD):
                for p in range(0, PER_WORD, 2):
                    _pack_set(out[o // COLUMNS], at + p, of_group[word + p :], step)
                at += (1 + last - first) * step


@compiled
def _pack_loop(job: Any) -> None:
    by_dtype(_pack, job)


def packed(whole_oi: Tensor) -> Tensor:
    """Weights as `product` reads them: set after set, a tile's outputs together.

    Args:
        whole_oi: uint8, 128 for 0; both widths are multiples of 64.

    Returns:
        int8, a row for each tile; before the weights of a word's two sets, what their sums begin
        with, as inputs are unsigned, in int16.
    """
    o, i = whole_oi.shape
    n_words = i // PER_WORD + -(-i // (RUN * MOST)) * _WORDS_A_RUN
    out = torch.empty(o // COLUMNS, n_words * PER_WORD * COLUMNS, dtype=torch.int8)
    run(_pack_loop, whole_oi, out)
    return out


@njit(**LOOP)
def _product(job: Any, dtype: Any) -> None:
    some_rows(multiply_all, job, dtype)


@compiled
def _product_loop(job: Any) -> None:
    by_dtype(_product, job)


product = partial(multiplied, _product_loop)
