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
from tallrec.llm.kernels.begun import SOME as SOME_BY_SUMS
from tallrec.llm.kernels.begun import Begins, arrays_of, begin, beginning_of, places_of
from tallrec.llm.kernels.byte_rows import ROWS, Packed, packed_of
from tallrec.llm.kernels.int8 import BYTE, gate_round_row, round_row
from tallrec.llm.kernels.native import (
    FLOAT,
    LOOP,
    by_dtype,
    compiled,
    constant,
    fetch_ahead,
    rows,
    run,
    share,
)
from tallrec.llm.kernels.whole_layers import add_row, normalize

multiply_all = (byte_products if byte_products.IN_USE else short_products).multiply_all
SOME = 8 * ROWS  # what becomes of them, gate and up in float32 most of it, fits a second cache


class _Places(NamedTuple):
    """For some rows: rounded, the size of their steps, and what products give."""

    attended: Any
    normed: Any
    gated: Any
    factors: Any
    sums: Any
    both: Any


@njit(**LOOP)
def _places_of(layer: Any, n: Any, more: Any) -> Any:
    """For n rows; behind what is rounded, for some bytes more."""
    e, d, i = layer.attended.shape[1], layer.x.shape[1], layer.both.shape[1] // 2
    attended, normed = np.empty((n, e + more), BYTE), np.empty((n, d + more), BYTE)
    gated, factors = np.empty((n, i + more), BYTE), np.empty(n, FLOAT)
    sums, both = np.empty((n, max(d, e)), FLOAT), np.empty((n, 2 * i), FLOAT)
    return _Places(attended, normed, gated, factors, sums, both)


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
        sum_d = some.sums[r, :d]  # not out, which total may be: LLVM would go number by number
        add_row(sum_d, total[r], sum_d, some.factors[r])
        copy(out[r], sum_d)


class _Layer(NamedTuple):
    """What a loop reads of a layer and its rows, and where it writes."""

    x: Any
    attended: Any
    out: Any
    norm: Any
    epsilon: Any
    weights: Any
    total: Any
    both: Any
    scale: Any
    steps: Any


@njit(**LOOP)
def _layer_of(job: Any, dtype: Any) -> Any:
    x, attended, out = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, dtype)
    norm, epsilon = rows(job, 3, dtype)[0], rows(job, 4, FLOAT)[0, 0]
    weights = packed_of(job, 5), packed_of(job, 7), packed_of(job, 9)
    total, both = rows(job, 11, dtype), rows(job, 12, dtype)
    scale, steps = rows(job, 13, FLOAT), rows(job, 14, FLOAT)
    return _Layer(x, attended, out, norm, epsilon, weights, total, both, scale, steps)


@njit(**LOOP)
def _finish_some(
    round_one: Any, round_gated: Any, multiply: Any, some: Any, layer: Any, a: Any, b: Any
) -> None:
    """Rows a to b, rounded and multiplied as is said."""
    (o, gate_up, down), total = layer.weights, layer.total[a:b]
    _add_attended(round_one, multiply, some, o, layer.x[a:b], layer.attended[a:b], total)
    scale, steps = layer.scale[a:b], layer.steps[a:b]
    _norm_rounded(round_one, some, layer.norm, layer.epsilon, scale, steps)
    _gated_rounded(round_gated, multiply, some, gate_up, b - a, layer.both[a:b])
    _add_gated(multiply, some, down, total, layer.out[a:b])


@njit(**LOOP)
def _finish(job: Any, dtype: Any) -> None:
    layer, (start, stop) = _layer_of(job, dtype), share(job[0])
    some = _places_of(layer, SOME, 0)
    for a in range(start, stop, SOME):
        _finish_some(round_row, gate_round_row, multiply_all, some, layer, a, min(a + SOME, stop))


@compiled
def _finish_loop(job: Any) -> None:
    by_dtype(_finish, job)


@njit(**LOOP)
def _finish_by_sums(job: Any, dtype: Any) -> None:
    layer, (start, stop) = _layer_of(job, dtype), share(job[0])
    some, behind = _places_of(layer, SOME_BY_SUMS, mixed_rows.TERM), beginning_of(job, 15, dtype)
    some_behind, multiply = places_of(behind), mixed_products.multiply_all
    round_one, round_gated = mixed_rows.round_row, mixed_rows.gate_round_row
    for a in range(start, stop, SOME_BY_SUMS):
        b = min(a + SOME_BY_SUMS, stop)
        _finish_some(round_one, round_gated, multiply, some, layer, a, b)
        for r in range(b, min(b + SOME_BY_SUMS, stop)):
            fetch_ahead(layer.x, r)
            fetch_ahead(layer.attended, r)
        if len(behind.q):
            begin(some_behind, behind, layer.out, a, b - a)


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
    behind: Begins | None = None,
) -> tuple[Tensor, ...]:
    """The sum of x' and down(silu(gate) * up) of norm(x'), where x' = x + o(attended).

    Args:
        x: What the layer has read.
        attended: What attention gave.
        norm: Weight and epsilon of the norm.
        weights: Of o, of gate and up together, and of down.
        keeps: Whether more than the sum is wanted.
        by_sums: Whether weights are of `mixed_products`.
        behind: How the layer behind begins, if its rows are to be begun too; by sums alone.

    Returns:
        The sum; x', 1 / rms(x'), and gate and up side by side, each row to be scaled by the last.
    """
    out, shape = torch.empty(x.shape, dtype=x.dtype), (*x.shape[:-1], 1)
    total = torch.empty_like(out) if keeps else out
    both = torch.empty(*x.shape[:-1] if keeps else (0,), weights[1].steps_o.numel(), dtype=x.dtype)
    scale, steps = torch.empty(shape), torch.empty(shape)
    packed = [part for weight in weights for part in weight]
    more = norm[0], constant(norm[1]), *packed, total, both, scale, steps
    if by_sums:
        run(_finish_by_sums_loop, x, attended, out, *more, *arrays_of(behind))
    else:
        run(_finish_loop, x, attended, out, *more)
    return out, total, scale, both, steps
