"""Products of eight bits where a core adds bytes beside its products of them (AMD's Zen 4).

Half as many products by sums (Winograd, 1968): (x0 + w1) (x1 + w0) = x0 w0 + x1 w1 + x0 x1 + w0 w1,
of which the last two are of a row and of an output alone. The sums are made where products cannot
be, so that two thirds of a row's inputs by sums and one third as they are take two thirds of the
time of `byte_products`. A sum has to fit eight bits: inputs and weights by sums are 63 at most.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from tallrec.llm.kernels.byte_products import IN_USE as _HAS_PRODUCTS
from tallrec.llm.kernels.byte_rows import (
    BYTES,
    PER_WORD,
    by_rows,
    by_tiles,
    row_addresses,
    some_rows,
    write,
)
from tallrec.llm.kernels.int8 import BYTE, ZERO, multiplied, round_rows
from tallrec.llm.kernels.mixed_rows import GROUP, PART_OF, TERM, round_row
from tallrec.llm.kernels.native import INT, LOOP, PART, by_dtype, compiled, rows, run, share
from tallrec.llm.kernels.vectors import IS_LONG, LANES, LONGS, WORD, WORDS, load, spread

CAN = _HAS_PRODUCTS and IS_LONG
IN_USE = CAN and llvm.get_host_cpu_name().startswith("znver")
ROWS, VECTORS = 5, 3  # that are summed at once: more would leave sums of bytes no registers
COLUMNS = VECTORS * LANES
_STEPS, _STEP = PART_OF // PER_WORD, 3 * COLUMNS * BYTES  # words of a part; of weights for each
_GROUP = _STEPS * _STEP  # bytes of weights for a group
_SUMS = ROWS * VECTORS
_OWN = [f"%zmm{number}" for number in range(_SUMS, 32)]  # registers beside those of sums

llvm.initialize_native_asmparser()


def _of_x(builder: Any, address: Any, offset: Any) -> Any:
    """A word of a row, in all lanes."""
    return spread(builder, load(builder, address, offset, WORD), WORDS)


def _step_code(step: int) -> list[str]:
    """Instructions that add products of a word of each part and their weights.

    Operands are the sums, the address of weights, and those of rows.
    """
    (*w, x0, x1, x2, one, other), lines = _OWN[: 3 * VECTORS + 5], []
    for k, register in enumerate(w):
        at = step * _STEP + k * LANES * BYTES
        lines.append(f"vmovdqu64 {at}(${_SUMS}), {register}")
    for r in range(ROWS):
        for part, register in enumerate((x0, x1, x2)):
            at = step * BYTES + part * PART_OF
            lines.append(f"vpbroadcastd {at}(${_SUMS + 1 + r}), {register}")
        for v in range(VECTORS):
            lines.append(f"vpaddb {x0}, {w[VECTORS + v]}, {one}")
            lines.append(f"vpaddb {x1}, {w[v]}, {other}")
            lines.append(f"vpdpbusd {other}, {one}, ${r * VECTORS + v}")
        lines += (
            f"vpdpbusd {w[2 * VECTORS + v]}, {x2}, ${r * VECTORS + v}" for v in range(VECTORS)
        )
    return lines


def _add_group(builder: Any, sums: list[Any], of_w: Any, x_r: list[Any]) -> None:
    """Adds products of a group of inputs and their weights.

    In the order of instructions that is written here: that of LLVM takes a tenth more time, as
    sums of bytes then get in the way of products more often.
    """
    lines = [line for step in range(_STEPS) for line in _step_code(step)]
    before, addresses = [builder.load(total) for total in sums], [of_w, *x_r]
    constraints = [
        *len(sums) * ["=v"],
        *len(addresses) * ["r"],
        *map(str, range(len(sums))),
        *(f"~{{{register[1:]}}}" for register in _OWN),
        "~{memory}",
    ]
    kind = ir.FunctionType(
        ir.LiteralStructType(len(sums) * [WORDS]), [*(one.type for one in (*addresses, *before))]
    )
    given = [*addresses, *before]
    after = builder.asm(kind, "\n".join(lines), ",".join(constraints), given, True)
    for number, total in enumerate(sums):
        builder.store(builder.extract_value(after, number), total)


@intrinsic
def _sum(_context: Any, like: Any, of_rows: Any, places: Any) -> Any:
    """Y of some rows and `COLUMNS` outputs; see `byte_products`."""

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        x_r, y_r = row_addresses(builder, arguments[1], ROWS)
        of_w, of_steps, n_groups = cgutils.unpack_tuple(builder, arguments[2])
        starts = [load(builder, of_w, LONGS(v * LANES * BYTES), WORDS) for v in range(VECTORS)]
        behind = builder.mul(n_groups, LONGS(GROUP))
        terms = [_of_x(builder, of_x, behind) for of_x in x_r]
        starts = [builder.sub(start, term) for term in terms for start in starts]
        sums = [cgutils.alloca_once_value(builder, start) for start in starts]
        of_w = builder.add(of_w, LONGS(COLUMNS * BYTES))
        with cgutils.for_range(builder, n_groups) as loop:
            w_at = builder.add(of_w, builder.mul(loop.index, LONGS(_GROUP)))
            group = builder.mul(loop.index, LONGS(GROUP))
            _add_group(builder, sums, w_at, [builder.add(of_x, group) for of_x in x_r])
        write(builder, like, [builder.load(total) for total in sums], of_steps, y_r)
        return context.get_dummy_value()

    return types.void(like, of_rows, places), code


@njit(**PART)
def multiply(y: Any, x: Any, weights: Any, o: Any) -> None:
    """A tile's outputs; see `byte_rows.by_rows`."""
    by_rows(_sum, y, x, weights, o, (ROWS, COLUMNS), (x.shape[1] // GROUP,))


@njit(**LOOP)
def multiply_all(y: Any, x: Any, weights: Any, width: Any) -> None:
    """All outputs of rows."""
    by_tiles(multiply, y, x, weights, width, COLUMNS)


@njit(**LOOP)
def _rounded(job: Any, dtype: Any) -> None:
    round_rows(round_row, job, dtype)


@compiled
def _rounded_loop(job: Any) -> None:
    by_dtype(_rounded, job)


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as `int8.rounded` gives them, with `TERM` bytes more."""
    x = x.contiguous()
    out = torch.empty(*x.shape[:-1], x.shape[-1] + TERM, dtype=torch.uint8)
    steps = torch.empty(*x.shape[:-1], 1)
    run(_rounded_loop, x, out, steps)
    return out, steps


@njit(**LOOP)
def _pack_output(tile: Any, column: Any, whole_i: Any) -> None:
    """Packs the weights of an output, and before them what sums begin with."""
    total, word = INT(0), COLUMNS * PER_WORD
    for at in range(0, len(whole_i) - TERM, GROUP):
        for j in range(PART_OF):
            to = word + at // GROUP * _STEPS * _STEP + j // PER_WORD * _STEP + column + j % PER_WORD
            w0, w1 = INT(whole_i[at + j]) - INT(ZERO), INT(whole_i[at + PART_OF + j]) - INT(ZERO)
            w2 = INT(whole_i[at + 2 * PART_OF + j]) - INT(ZERO)
            tile[to], tile[to + word] = np.int8(w0 - INT(ZERO)), np.int8(w1)
            tile[to + 2 * word] = np.int8(w2)
            total -= INT(w0 * (w1 + INT(ZERO)) + w2 * INT(ZERO))
    for p in range(PER_WORD):
        tile[column + p] = np.int8(INT(total >> INT(8 * p)))


@njit(**LOOP)
def _pack(job: Any, _dtype: Any) -> None:
    out, whole = rows(job, 0, np.int8), rows(job, 1, BYTE)
    start, stop = share(job[0])
    for t in range(start, stop):
        first = min(t * COLUMNS, len(whole) - COLUMNS)
        for c in range(COLUMNS):
            _pack_output(out[t], c * PER_WORD, whole[first + c])


@compiled
def _pack_loop(job: Any) -> None:
    by_dtype(_pack, job)


def packed(whole_oi: Tensor) -> Tensor:
    """Weights as `product` reads them.

    Args:
        whole_oi: uint8 as `rounded` gives it; i is a multiple of 192, o of 64.

    Returns:
        int8, a row for each tile of outputs, the last of which begins in the one before it where
        the width wants that; after what sums begin with, a word of the first inputs to be added,
        one of the second, and one of the others.
    """
    o, i = len(whole_oi), whole_oi.shape[1] - TERM
    out = torch.empty(-(-o // COLUMNS), (1 + i // PER_WORD) * PER_WORD * COLUMNS, dtype=torch.int8)
    run(_pack_loop, out, whole_oi)
    return out


@njit(**LOOP)
def _product(job: Any, dtype: Any) -> None:
    some_rows(multiply_all, job, dtype)


@compiled
def _product_loop(job: Any) -> None:
    by_dtype(_product, job)


product = partial(multiplied, _product_loop)
