"""The gradients of what `tallrec.llm.kernels.finished` computes, in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tallrec.llm.kernels.arithmetic import copy, narrow
from tallrec.llm.kernels.byte_rows import Packed, packed_of
from tallrec.llm.kernels.finished import SOME, multiply_all
from tallrec.llm.kernels.int8 import BYTE, gate_row_backward, round_row
from tallrec.llm.kernels.native import FLOAT, LOOP, by_dtype, compiled, rows, run, share
from tallrec.llm.kernels.whole_layers import norm_row_backward


class _Places(NamedTuple):
    """For some rows: gradients rounded, and what products give."""

    whole_d: Any
    whole_both: Any
    factors: Any
    sums: Any
    inner: Any
    both: Any


@njit(**LOOP)
def _places(e: Any, d: Any, i: Any) -> Any:
    whole_d, whole_both = np.empty((SOME, d), BYTE), np.empty((SOME, 2 * i), BYTE)
    factors, sums = np.empty(SOME, FLOAT), np.empty((SOME, max(d, e)), FLOAT)
    inner, both = np.empty((SOME, i), FLOAT), np.empty((SOME, 2 * i), FLOAT)
    return _Places(whole_d, whole_both, factors, sums, inner, both)


@njit(**LOOP)
def _gated_backward(some: Any, weights: Any, both: Any, steps: Any) -> None:
    """The gradients of gate and up, rounded."""
    n, i = len(both), both.shape[1] // 2
    multiply_all(some.inner[:n], some.whole_d[:n], weights, i)
    for r in range(n):
        slopes, of_grad = (some.both[r, :i], some.both[r, i:]), (some.inner[r], some.factors[r])
        gate_row_backward(slopes, of_grad, (both[r, :i], both[r, i:], steps[r, 0]))
        some.factors[r] = round_row(some.both[r], some.whole_both[r])


@njit(**LOOP)
def _finish_backward(job: Any, dtype: Any) -> None:
    grad, dx, d_attended = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, dtype)
    x, norm, scale = rows(job, 3, dtype), rows(job, 4, dtype)[0], rows(job, 5, FLOAT)
    both, steps = rows(job, 6, dtype), rows(job, 7, FLOAT)
    o, gate_up, down = packed_of(job, 8), packed_of(job, 10), packed_of(job, 12)
    d, e = x.shape[1], d_attended.shape[1]
    some = _places(e, d, both.shape[1] // 2)
    start, stop = share(job[0])
    for a in range(start, stop, SOME):
        b = min(a + SOME, stop)
        n = b - a
        for r in range(n):
            copy(some.sums[r, :d], grad[a + r])
            some.factors[r] = round_row(some.sums[r, :d], some.whole_d[r])
        _gated_backward(some, down, both[a:b], steps[a:b])
        multiply_all(some.sums[:n], some.whole_both[:n], gate_up, d)
        for r in range(n):
            slopes, factor = some.sums[r, :d], some.factors[r]
            for j in range(len(slopes)):
                slopes[j] *= factor
            norm_row_backward(slopes, x[a + r], norm, scale[a + r, 0], grad[a + r], dx[a + r])
            some.factors[r] = round_row(slopes, some.whole_d[r])
        multiply_all(some.sums[:n], some.whole_d[:n], o, e)
        for r in range(n):
            out_e, sum_e, factor = d_attended[a + r], some.sums[r], some.factors[r]
            for j in range(len(out_e)):
                out_e[j] = narrow(sum_e[j] * factor, out_e[j])


@compiled
def _finish_backward_loop(job: Any) -> None:
    by_dtype(_finish_backward, job)


def finished_backward(
    grad: Tensor, saved: Sequence[Tensor], weights: Sequence[Packed]
) -> tuple[Tensor, Tensor]:
    """The gradients of what the layer has read, as far as it goes beside attention, and of that.

    Args:
        grad: Of the layer's result.
        saved: x', the norm's weight, and what else `finished` gives.
        weights: As `finished` takes them, turned round.
    """
    dx, n_attended = torch.empty_like(grad), weights[0].steps_o.numel()
    d_attended = torch.empty(*grad.shape[:-1], n_attended, dtype=grad.dtype)
    packed = [part for weight in weights for part in weight]
    run(_finish_backward_loop, grad, dx, d_attended, *saved, *packed)
    return dx, d_attended
