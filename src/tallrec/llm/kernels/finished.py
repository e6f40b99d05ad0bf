"""What follows attention in a layer of eight bits, some rows from its first to its last product.

What lies between the products stays in a core's second cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tallrec.llm.kernels import byte_products, mixed_products, mixed_rows, short_products
from tallrec.llm.kernels.arithmetic import copy
from tallrec.llm.kernels.byte_rows import ROWS
from tallrec.llm.kernels.int8 import BYTE, gate_round_row, round_row
from tallrec.llm.kernels.native import FLOAT, LOOP, by_dtype, compiled, rows, run, share
from tallrec.llm.kernels.whole_layers import add_row, normalize

multiply_all = (byte_products if byte_products.IN_USE else short_products).multiply_all
SOME_BY_SUMS = 12 * mixed_products.ROWS  # as below, and 30 to 90 rows take as long
SOME = 8 * ROWS  # what becomes of them, gate and up in float32 most of it, fits a second cache


class Packed(NamedTuple):
    """Weights of a product as its loops' `packed` gives them, and the size of their steps."""

    weights: Tensor
    steps_o: Tensor


class _Places(NamedTuple):
    """For some rows: rounded, the size of their steps, and what products give."""

    attended: Any
    normed: Any
    gated: Any
    factors: Any
    sums: Any
    both: Any


@njit(**LOOP)
def _places(n: Any, e: Any, d: Any, i: Any, more: Any) -> Any:
    """For n rows; behind what is rounded, for some bytes more."""
    attended, normed = np.empty((n, e + more), BYTE), np.empty((n, d + more), BYTE)
    gated, factors = np.empty((n, i + more), BYTE), np.empty(n, FLOAT)
    sums, both = np.empty((n, max(d, e)), FLOAT), np.empty((n, 2 * i), FLOAT)
    return _Places(attended, normed, gated, factors, sums, both)


@njit(**LOOP)
def packed_of(job: Any, number: Any) -> Any:
    """`Packed` weights of a job."""
    return rows(job, number, np.int8), rows(job, number + 1, FLOAT)


@njit(**LOOP)
def _add_attended(
    round_one: Any, multiply: Any, some: Any, weights: Any, x: Any, attended: Any, total: Any
) -> None:
    """The sum of x and the product of what attention gave, also in float32."""
    n, d = x.shape
    for r in range(n):
        buffer = some.sums[r, : attended.shape[1]]
        copy(buffer, attended[r])
        some.factors[r] = round_one(buffer, some.attended[r])
    multiply(some.sums[:n], some.attended[:n], weights, d)
    for r in range(n):
        add_row(total[r], x[r], some.sums[r], some.factors[r])
        copy(some.sums[r, :d], total[r])


@njit(**LOOP)
def _norm_rounded(
    round_one: Any, some: Any, norm: Any, epsilon: Any, scale: Any, steps: Any
) -> None:
    """The norm of a sum, and 1 / rms and the size of steps of each row."""
    for r in range(len(scale)):
        sum_d = some.sums[r, : len(norm)]
        scale[r, 0] = normalize(sum_d, norm, epsilon)
        some.factors[r] = round_one(sum_d, some.normed[r])
        steps[r, 0] = some.factors[r]


@njit(**LOOP)
def _gated_rounded(
    round_gated: Any, multiply: Any, some: Any, weights: Any, n: Any, both: Any
) -> None:
    """silu(gate) * up; gate and up are kept where there are places for them."""
    i = some.both.shape[1] // 2
    multiply(some.both[:n], some.normed[:n], weights, 2 * i)
    for r in range(len(both)):
        copy(both[r], some.both[r])
    for r in range(n):
        gate, up = some.both[r, :i], some.both[r, i:]
        some.factors[r] = round_gated(gate, up, some.factors[r], some.gated[r])


@njit(**LOOP)
def _add_gated(multiply: Any, some: Any, weights: Any, total: Any, out: Any) -> None:
    """The sum of the sum before and the last product."""
    n, d = total.shape
    multiply(some.sums[:n], some.gated[:n], weights, d)
    for r in range(n):
        add_row(out[r], total[r], some.sums[r], some.factors[r])


@njit(**LOOP)
def _finish_by(
    round_one: Any, round_gated: Any, multiply: Any, more: Any, some_rows: Any, job: Any, dtype: Any
) -> None:
    """Some rows at a time, rounded and multiplied as is said."""
    x, attended, out = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, dtype)
    norm, epsilon = rows(job, 3, dtype)[0], rows(job, 4, FLOAT)[0, 0]
    o, gate_up, down = packed_of(job, 5), packed_of(job, 7), packed_of(job, 9)
    total, both = rows(job, 11, dtype), rows(job, 12, dtype)
    scale, steps = rows(job, 13, FLOAT), rows(job, 14, FLOAT)
    some = _places(some_rows, attended.shape[1], x.shape[1], both.shape[1] // 2, more)
    start, stop = share(job[0])
    for a in range(start, stop, some_rows):
        b = min(a + some_rows, stop)
        _add_attended(round_one, multiply, some, o, x[a:b], attended[a:b], total[a:b])
        _norm_rounded(round_one, some, norm, epsilon, scale[a:b], steps[a:b])
        _gated_rounded(round_gated, multiply, some, gate_up, b - a, both[a:b])
        _add_gated(multiply, some, down, total[a:b], out[a:b])


@njit(**LOOP)
def _finish(job: Any, dtype: Any) -> None:
    _finish_by(round_row, gate_round_row, multiply_all, 0, SOME, job, dtype)


@compiled
def _finish_loop(job: Any) -> None:
    by_dtype(_finish, job)


@njit(**LOOP)
def _finish_by_sums(job: Any, dtype: Any) -> None:
    more, rows = mixed_rows.TERM, SOME_BY_SUMS
    round_one, round_gated = mixed_rows.round_row, mixed_rows.gate_round_row
    _finish_by(round_one, round_gated, mixed_products.multiply_all, more, rows, job, dtype)


@compiled
def _finish_by_sums_loop(job: Any) -> None:
    by_dtype(_finish_by_sums, job)


def finished(
    x: Tensor,
    attended: Tensor,
    norm: tuple[Tensor, float],
    weights: Sequence[Packed],
    *,
    keeps: bool,
    by_sums: bool = False,
) -> tuple[Tensor, ...]:
    """The sum of x' and down(silu(gate) * up) of norm(x'), where x' = x + o(attended).

    Args:
        x: What the layer has read.
        attended: What attention gave.
        norm: Weight and epsilon of the norm.
        weights: Of o, of gate and up together, and of down.
        keeps: Whether more than the sum is wanted.
        by_sums: Whether weights are of `mixed_products`.

    Returns:
        The sum; x', 1 / rms(x'), and gate and up side by side, each row to be scaled by the last.
    """
    out, shape = torch.empty(x.shape, dtype=x.dtype), (*x.shape[:-1], 1)
    total = torch.empty_like(out) if keeps else out
    both = torch.empty(*x.shape[:-1] if keeps else (0,), weights[1].steps_o.numel(), dtype=x.dtype)
    scale, steps = torch.empty(shape), torch.empty(shape)
    packed = [part for weight in weights for part in weight]
    more = norm[0], torch.tensor([norm[1]]), *packed, total, both, scale, steps
    run(_finish_by_sums_loop if by_sums else _finish_loop, x, attended, out, *more)
    return out, total, scale, both, steps
