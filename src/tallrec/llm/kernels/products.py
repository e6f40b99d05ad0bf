"""Products of eight bits where the processor has no instructions for them, but for pairs of int16.

There torch's own is slow, or wrong: two products of eight bits overflow 16. Here numbers are
widened to 16 bits in the first cache, where sums of two products are exact in 32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tallrec.llm.kernels.arithmetic import narrow
from tallrec.llm.kernels.int8 import BYTE, ZERO
from tallrec.llm.kernels.native import FLOAT, INT, LOOP, by_dtype, compiled, rows, run, share
from tallrec.llm.kernels.tiles import COLUMNS, tile_of

_TALL = 6  # rows of a tile
_ROWS = 16 * _TALL  # that a part of the weights is widened for
_WORDS = 5120 // COLUMNS  # of a row that are multiplied at a time; the part fits a first cache
_SHORT, _BYTES = np.int16, 4
_OF_ROW, _OF_WORDS = (_WORDS + 16) * _BYTES, COLUMNS * _BYTES  # known, they cost no instructions

_tile = tile_of(_TALL)


def packed(signed_oi: Tensor) -> Tensor:
    """Weights as `product` reads them: pairs of inputs side by side, a tile's outputs together.

    Args:
        signed_oi: int8; both widths are multiples of 64.

    Returns:
        int8 [o / c * i / 2, 2 c], of tiles of c columns.
    """
    o, i = signed_oi.shape
    tiles = signed_oi.view(o // COLUMNS, COLUMNS, i // 2, 2).transpose(1, 2)
    return tiles.reshape(-1, 2 * COLUMNS)


@njit(**LOOP)
def _widen(x: Any, out: Any, n_words: Any) -> None:
    """Rows of bytes as int16, of which each n words are a part."""
    for r in range(len(x)):
        for part in range(len(out)):
            x_i, out_i = x[r, 2 * part * n_words : 2 * (part + 1) * n_words], out[part, r]
            for j in range(len(x_i)):
                out_i[j] = _SHORT(_SHORT(x_i[j]) - _SHORT(ZERO))


@njit(**LOOP)
def _multiply(some: Any, weights: Any, part: Any, sums: Any, n: Any, add: Any) -> None:
    """Sums of n rows times a tile's columns."""
    for w in range(len(weights)):
        part_w, weights_w = part[w], weights[w]
        for j in range(len(weights_w)):
            part_w[j] = weights_w[j]
    for r in range(0, n, _TALL):
        of_a, of_c = some.ctypes.data + r * _OF_ROW, sums.ctypes.data + r * _OF_WORDS
        places = of_a, _OF_ROW, part.ctypes.data, _OF_WORDS, of_c, _OF_WORDS, len(weights)
        _tile(sums[0, 0], places, add)


@njit(**LOOP)
def _product(job: Any, dtype: Any) -> None:
    y, x = rows(job, 0, dtype), rows(job, 1, BYTE)
    weights, steps = rows(job, 2, np.int8), rows(job, 3, FLOAT)[0]
    words = x.shape[1] // 2
    n_parts = (words + _WORDS - 1) // _WORDS
    n_words = (words + n_parts - 1) // n_parts
    some, sums = np.zeros((n_parts, _ROWS, _OF_ROW // 2), _SHORT), np.zeros((_ROWS, COLUMNS), INT)
    part = np.zeros((_WORDS, 2 * COLUMNS), _SHORT)
    start, stop = share(job[0])
    for first in range(start, stop, _ROWS):
        n = min(_ROWS, stop - first)
        _widen(x[first : first + n], some, n_words)
        for column in range(0, y.shape[1], COLUMNS):
            for p in range(n_parts):
                at, to = p * n_words, min(words, (p + 1) * n_words)
                of = weights[column // COLUMNS * words + at : column // COLUMNS * words + to]
                _multiply(some[p], of, part, sums, n, p > 0)
            for r in range(n):
                y_o, sum_o = y[first + r, column : column + COLUMNS], sums[r]
                steps_o = steps[column : column + COLUMNS]
                for j in range(COLUMNS):
                    y_o[j] = narrow(FLOAT(sum_o[j]) * steps_o[j], y_o[j])


@compiled
def _product_loop(job: Any) -> None:
    by_dtype(_product, job)


def product(whole: Tensor, weights: Tensor, steps_o: Tensor, dtype: torch.dtype) -> Tensor:
    """y_no of rows and weights that are rounded, each output times the size of its steps.

    Args:
        whole: uint8 [.., i], 128 for 0.
        weights: As `packed` gives them.
        steps_o: float32.
        dtype: Of what comes out.
    """
    y = torch.empty(*whole.shape[:-1], len(steps_o), dtype=dtype)
    run(_product_loop, y, whole, weights, steps_o.view(1, -1))
    return y
