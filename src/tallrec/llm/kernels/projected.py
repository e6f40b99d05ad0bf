"""Queries, keys and values behind their products.

The scale of rows of eight bits, bias, LoRA's adapters of the three with their dropout, rotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tallrec.llm.kernels.arithmetic import copy, wide
from tallrec.llm.kernels.int8 import NONE, scale_of
from tallrec.llm.kernels.lora import FIRST_O, FIRST_R, LAST_O, LAST_R, draw
from tallrec.llm.kernels.native import (
    FLOAT,
    LONG,
    LOOP,
    PART,
    by_dtype,
    compiled,
    rows,
    run,
    share,
)
from tallrec.llm.kernels.tiles import ROWS, multiply
from tallrec.llm.kernels.turned import turn_heads

# Shape letters: n tokens, i inputs, o outputs of queries, keys and values together, r ranks of
# their adapters together, e width of a head.


class Stacked(NamedTuple):
    """Adapters of queries, keys and values, one below the other.

    Attributes:
        a_ri: float32; each rank is filled up to a multiple of four, by zeros.
        b_ro: Transposed, in float32 and times the adapter's factor; o is that of the widest part.
        table: int64, of each its `FIRST_O`, `LAST_O`, `FIRST_R`, `LAST_R` and what `draw` reads.
    """

    a_ri: Tensor
    b_ro: Tensor
    table: Tensor


@njit(**LOOP)
def norm_again(out: Any, x_i: Any, weight_i: Any, inverse: Any) -> None:
    """A norm's result, of what it has read and 1 / rms of that."""
    for j in range(len(out)):
        out[j] = wide(x_i[j]) * (inverse * wide(weight_i[j]))


class FourTokens(NamedTuple):
    """Of four tokens what one adapter after the other reads and writes.

    Attributes:
        x: What the norm gives.
        y: Queries, keys and values side by side, or their gradients.
        stays: 1 where an element of x stays, 0 where it is left out.
        kept: What stays.
        low: A x.
        slopes: The gradients of A x.
        dx: The gradients of x.
        dx_one: Those by way of one adapter.
    """

    x: Any
    y: Any
    stays: Any
    kept: Any
    low: Any
    slopes: Any
    dx: Any
    dx_one: Any


@njit(**PART)
def four_tokens(i: Any, o: Any, r: Any) -> Any:
    """Places for them."""
    x, y = np.zeros((ROWS, i), FLOAT), np.zeros((ROWS, o), FLOAT)
    stays, kept = np.zeros((ROWS, i), FLOAT), np.zeros((ROWS, i), FLOAT)
    low, slopes = np.zeros((ROWS, r), FLOAT), np.zeros((ROWS, r), FLOAT)
    dx, dx_one = np.zeros((ROWS, i), FLOAT), np.zeros((ROWS, i), FLOAT)
    return FourTokens(x, y, stays, kept, low, slopes, dx, dx_one)


@njit(**LOOP)
def keep(four: Any, one: Any, first: Any) -> None:
    """What stays of four tokens from the first on."""
    for t in range(ROWS):
        x_i, stays_i, kept_i = four.x[t], four.stays[t], four.kept[t]
        draw(stays_i, first + t, one)
        for j in range(len(kept_i)):
            kept_i[j] = x_i[j] * stays_i[j]


@njit(**PART)
def multiply_some(out: Any, x: Any, o: Any, end: Any, weights: Any, r: Any) -> None:
    """Of some columns of four rows with four rows of weights, from r on: those columns of out."""
    x0, x1, x2, x3 = x[0, o:end], x[1, o:end], x[2, o:end], x[3, o:end]
    w0, w1, w2, w3 = weights[r], weights[r + 1], weights[r + 2], weights[r + 3]
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = FLOAT(0)
    c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = FLOAT(0)
    for j in range(len(x0)):
        a0 += x0[j] * w0[j]
        a1 += x0[j] * w1[j]
        a2 += x0[j] * w2[j]
        a3 += x0[j] * w3[j]
        b0 += x1[j] * w0[j]
        b1 += x1[j] * w1[j]
        b2 += x1[j] * w2[j]
        b3 += x1[j] * w3[j]
        c0 += x2[j] * w0[j]
        c1 += x2[j] * w1[j]
        c2 += x2[j] * w2[j]
        c3 += x2[j] * w3[j]
        d0 += x3[j] * w0[j]
        d1 += x3[j] * w1[j]
        d2 += x3[j] * w2[j]
        d3 += x3[j] * w3[j]
    out[0, r], out[0, r + 1], out[0, r + 2], out[0, r + 3] = a0, a1, a2, a3
    out[1, r], out[1, r + 1], out[1, r + 2], out[1, r + 3] = b0, b1, b2, b3
    out[2, r], out[2, r + 1], out[2, r + 2], out[2, r + 3] = c0, c1, c2, c3
    out[3, r], out[3, r + 1], out[3, r + 2], out[3, r + 3] = d0, d1, d2, d3


@njit(**LOOP)
def _fill(out: Any, y: Any, bias: Any, factor: Any) -> None:
    for j in range(len(out)):
        out[j] = wide(y[j]) * factor + wide(bias[j])


@njit(**LOOP)
def _projected(job: Any, dtype: Any) -> None:
    y, factors, bias = rows(job, 0, dtype), rows(job, 1, FLOAT), rows(job, 2, dtype)
    x, weight, scale = rows(job, 3, dtype), rows(job, 4, dtype), rows(job, 5, FLOAT)
    a, b, table = rows(job, 6, FLOAT), rows(job, 7, FLOAT), rows(job, 8, LONG)
    cos, sin, low = rows(job, 9, dtype), rows(job, 10, dtype), rows(job, 11, FLOAT)
    q, k, v = rows(job, 12, dtype), rows(job, 13, dtype), rows(job, 14, dtype)
    y_k, y_v = rows(job, 15, dtype), rows(job, 16, dtype)
    of_q, of_k = q.shape[1], q.shape[1] + k.shape[1]
    four = four_tokens(x.shape[1], bias.shape[1], len(a))
    start, stop = share(job[0])
    for first in range(start, stop, ROWS):
        count = min(ROWS, stop - first)
        for t in range(count):
            n, y_o, bias_o = first + t, four.y[t], bias[0]
            _fill(y_o[: y.shape[1]], y[n], bias_o, scale_of(factors, n))
            if len(y_k):
                _fill(y_o[of_q:of_k], y_k[n], bias_o[of_q:], FLOAT(1))
                _fill(y_o[of_k:], y_v[n], bias_o[of_k:], FLOAT(1))
            if len(table):
                norm_again(four.x[t], x[n], weight[0], scale[n, 0])
        for one in table:
            o, end, low_r = one[FIRST_O], one[LAST_O], four.low[:, one[FIRST_R] : one[LAST_R]]
            keep(four, one, first)
            for r in range(one[FIRST_R], one[LAST_R], ROWS):
                multiply_some(four.low, four.kept, 0, four.kept.shape[1], a, r)
            n_ranks = low_r.shape[1]
            multiply(low_r, b[one[FIRST_R] :], four.y[:, o:end], ROWS, end - o, n_ranks, True)
        for t in range(count):
            n, out = first + t, four.y[t]
            low[n, :] = four.low[t]
            turn_heads(q[n], out[:of_q], cos[n], sin[n], (FLOAT(1), FLOAT(1)))
            turn_heads(k[n], out[of_q:of_k], cos[n], sin[n], (FLOAT(1), FLOAT(1)))
            copy(v[n], out[of_k:])


@compiled
def _projected_loop(job: Any) -> None:
    by_dtype(_projected, job)


def projected(
    products: Sequence[Tensor],
    factors: Tensor | None,
    bias_o: Tensor,
    normed: tuple[Tensor, Tensor, Tensor],
    adapters: Stacked,
    turn: Sequence[Tensor],
    widths: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values.

    Args:
        products: What products give: the three side by side, each row to be scaled, or one by one.
        factors: What rows are to be scaled by; None for three.
        bias_o: What is added then, to the three side by side.
        normed: What the norm before has read, its weight, and 1 / rms(x).
        adapters: What is added of the norm's result.
        turn: What queries and keys are rotated by: cosines and sines in the same dtype, [n, e].
        widths: Of the three.

    Returns:
        The three, and A x of adapters, float32 [n, r], for the gradients.
    """
    y, *others = products
    q, k, v = (torch.empty(*y.shape[:-1], width, dtype=y.dtype) for width in widths)
    low = torch.empty(q.numel() // q.shape[-1], len(adapters.a_ri))
    factors = NONE if factors is None else factors
    others = others or 2 * [y.new_empty(0, 1)]
    run(_projected_loop, y, factors, bias_o, *normed, *adapters, *turn, low, q, k, v, *others)
    return q, k, v, low
