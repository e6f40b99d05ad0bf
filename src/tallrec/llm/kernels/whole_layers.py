"""Norms and sums between a decoder layer's products, forward and backward.

Each pass takes what a product gives as far as what the next one reads. Of products of eight bits,
that is rows yet to be scaled, and rounded rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tallrec.llm.kernels.arithmetic import copy, narrow, wide
from tallrec.llm.kernels.int8 import BYTE, NONE, no_rounded, round_row, scale_of
from tallrec.llm.kernels.native import FLOAT, LOOP, by_dtype, compiled, rows, run, share


@njit(**LOOP)
def normalize(x_d: Any, weight_d: Any, epsilon: Any) -> Any:
    """Takes x / rms(x) * weight in place of x; gives 1 / rms(x)."""
    squares = FLOAT(0)
    for j in range(len(x_d)):
        squares += x_d[j] * x_d[j]
    inverse = FLOAT(1) / np.sqrt(squares / FLOAT(len(x_d)) + epsilon)
    for j in range(len(x_d)):
        x_d[j] *= inverse * wide(weight_d[j])
    return inverse


@njit(**LOOP)
def _norm_rounded(job: Any, dtype: Any) -> None:
    x, weight, epsilon = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, FLOAT)[0, 0]
    whole, steps, scale = rows(job, 3, BYTE), rows(job, 4, FLOAT), rows(job, 5, FLOAT)
    buffer = np.empty(x.shape[1], FLOAT)
    start, stop = share(job[0])
    for n in range(start, stop):
        copy(buffer, x[n])
        scale[n, 0] = normalize(buffer, weight[0], epsilon)
        steps[n, 0] = round_row(buffer, whole[n])


@compiled
def _norm_rounded_loop(job: Any) -> None:
    by_dtype(_norm_rounded, job)


def norm_rounded(x: Tensor, weight_d: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """RMS norm as `rounded` gives it, and 1 / rms(x), float32 [.., 1]."""
    whole, steps, scale = _places(x)
    run(_norm_rounded_loop, x, weight_d, torch.tensor([epsilon]), whole, steps, scale)
    return whole, steps, scale


def _places(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For rounded rows, the size of their steps, and another number of each."""
    whole, shape = torch.empty(x.shape, dtype=torch.uint8), (*x.shape[:-1], 1)
    return whole, torch.empty(shape), torch.empty(shape)


@njit(**LOOP)
def add_row(out_d: Any, x_d: Any, y_d: Any, factor: Any) -> None:
    """The sum of x and y, which is to be scaled."""
    for j in range(len(out_d)):
        out_d[j] = narrow(wide(x_d[j]) + wide(y_d[j]) * factor, out_d[j])


@njit(**LOOP)
def _added(job: Any, dtype: Any) -> None:
    y, factors, x, out = (
        rows(job, 0, dtype),
        rows(job, 1, FLOAT),
        rows(job, 2, dtype),
        rows(job, 3, dtype),
    )
    start, stop = share(job[0])
    for n in range(start, stop):
        add_row(out[n], x[n], y[n], factors[n, 0])


@compiled
def _added_loop(job: Any) -> None:
    by_dtype(_added, job)


def added(y: Tensor, factors: Tensor, x: Tensor) -> Tensor:
    """The sum of x and y, each row of y to be scaled."""
    out = torch.empty(x.shape, dtype=x.dtype)
    run(_added_loop, y, factors, x, out)
    return out


@njit(**LOOP)
def _added_norm(job: Any, dtype: Any) -> None:
    y, factors, x = rows(job, 0, dtype), rows(job, 1, FLOAT), rows(job, 2, dtype)
    weight, epsilon, total = rows(job, 3, dtype), rows(job, 4, FLOAT)[0, 0], rows(job, 5, dtype)
    scale, normed = rows(job, 6, FLOAT), rows(job, 7, dtype)
    whole, steps = rows(job, 8, BYTE), rows(job, 9, FLOAT)
    buffer = np.empty(x.shape[1], FLOAT)
    start, stop = share(job[0])
    for n in range(start, stop):
        add_row(total[n], x[n], y[n], scale_of(factors, n))
        copy(buffer, total[n])
        scale[n, 0] = normalize(buffer, weight[0], epsilon)
        if len(whole):
            steps[n, 0] = round_row(buffer, whole[n])
        else:
            copy(normed[n], buffer)


@compiled
def _added_norm_loop(job: Any) -> None:
    by_dtype(_added_norm, job)


def added_norm(
    y: Tensor, x: Tensor, weight_d: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of x and y, and what `norm` gives of that."""
    total, normed, scale = torch.empty_like(x), torch.empty_like(x), torch.empty(*x.shape[:-1], 1)
    more = weight_d, torch.tensor([epsilon]), total, scale, normed
    run(_added_norm_loop, y, NONE, x, *more, *no_rounded(x))
    return total, normed, scale


def added_norm_rounded(
    y: Tensor, factors: Tensor, x: Tensor, weight_d: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum that `added` gives, and what `norm_rounded` gives of that."""
    total, (whole, steps, scale) = torch.empty(x.shape, dtype=x.dtype), _places(x)
    more = weight_d, torch.tensor([epsilon]), total, scale, x.new_empty(0, x.shape[-1])
    run(_added_norm_loop, y, factors, x, *more, whole, steps)
    return total, whole, steps, scale


@njit(**LOOP)
def norm_row_backward(
    slopes: Any, x_d: Any, weight_d: Any, inverse: Any, grad_d: Any, dx_d: Any
) -> None:
    """Takes the gradient of what a norm has read in place of that of its result.

    With what comes beside the norm, also in the dtype of the model.
    """
    drift = FLOAT(0)
    for j in range(len(slopes)):
        slopes[j] *= wide(weight_d[j])
        drift += slopes[j] * wide(x_d[j])
    drift *= inverse * inverse / FLOAT(len(slopes))
    for j in range(len(slopes)):
        slope = (slopes[j] - wide(x_d[j]) * drift) * inverse + wide(grad_d[j])
        dx_d[j] = narrow(slope, dx_d[j])
        slopes[j] = slope


@njit(**LOOP)
def _norm_backward_added(job: Any, dtype: Any) -> None:
    y, factors, more = rows(job, 0, dtype), rows(job, 1, FLOAT), rows(job, 2, dtype)
    x, weight, scale = rows(job, 3, dtype), rows(job, 4, dtype), rows(job, 5, FLOAT)
    grad, dx = rows(job, 6, dtype), rows(job, 7, dtype)
    whole, steps = rows(job, 8, BYTE), rows(job, 9, FLOAT)
    slopes = np.empty(x.shape[1], FLOAT)
    start, stop = share(job[0])
    for n in range(start, stop):
        y_d, factor = y[n], scale_of(factors, n)
        for j in range(len(slopes)):
            slopes[j] = wide(y_d[j]) * factor
        if len(more):
            more_d = more[n]
            for j in range(len(slopes)):
                slopes[j] += wide(more_d[j])
        norm_row_backward(slopes, x[n], weight[0], scale[n, 0], grad[n], dx[n])
        if len(whole):
            steps[n, 0] = round_row(slopes, whole[n])


@compiled
def _norm_backward_added_loop(job: Any) -> None:
    by_dtype(_norm_backward_added, job)


def norm_backward_added(
    y: Tensor,
    factors: Tensor | None,
    more: Tensor | None,
    x: Tensor,
    weight_d: Tensor,
    scale: Tensor,
    grad: Tensor,
    *,
    rounds: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of x, which goes through a norm and beside it.

    Args:
        y: Of the norm's result, each row to be scaled.
        factors: By these, if at all.
        more: More of it, if there is more.
        x: What the norm has read.
        weight_d: Its weight.
        scale: 1 / rms(x).
        grad: What comes beside it.
        rounds: Whether the gradient is wanted as `rounded` gives it too.

    Returns:
        The gradient, and of it rounded rows and the size of their steps, or nothing.
    """
    dx = torch.empty(x.shape, dtype=x.dtype)
    whole, steps = _places(x)[:2] if rounds else no_rounded(x)
    more = x.new_empty(0, x.shape[-1]) if more is None else more
    factors = NONE if factors is None else factors
    run(_norm_backward_added_loop, y, factors, more, x, weight_d, scale, grad, dx, whole, steps)
    return dx, whole, steps
