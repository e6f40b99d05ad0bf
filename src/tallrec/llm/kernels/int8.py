"""Passes around products of eight bits: rows rotated and rounded before, scaled behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tallrec.llm.kernels.arithmetic import copy, narrow, sigmoid, wide
from tallrec.llm.kernels.native import FLOAT, INT, LOOP, by_dtype, compiled, rows, run, share
from tallrec.llm.kernels.rotation import rotate
from tallrec.llm.kernels.short_sets import IN_USE, X, least_top

BYTE, ZERO = np.uint8, 128  # what stands for 0
NONE = torch.empty(0, 1)  # in place of numbers of rows that have none


def no_rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Places for rounded rows where none are wanted, and for the size of their steps."""
    return torch.empty(0, x.shape[-1], dtype=torch.uint8), NONE


@njit(**LOOP)
def scale_of(factors: Any, n: Any) -> Any:
    """What a row is to be scaled by; there are no factors if none is."""
    return factors[n, 0] if len(factors) else FLOAT(1)


@njit(**LOOP)
def round_row(buffer: Any, out_d: Any) -> Any:
    """A row, rotated and rounded, into out_d; the size of its steps."""
    rotate(buffer)
    return round_rotated(buffer, out_d, least_top(buffer, X) if IN_USE else FLOAT(0))


@njit(**LOOP)
def round_rotated(buffer: Any, out_d: Any, least: Any) -> Any:
    """The same of a rotated row; 127 steps are `least` at least."""
    most = INT(0)
    for j in range(len(buffer)):
        bits = INT(FLOAT(buffer[j]).view(np.int32) & INT(0x7FFFFFFF))
        most = bits if bits > most else most
    top = INT(most).view(np.float32)
    top = least if least > top else top
    factor = FLOAT(127) / top if top > 0 else FLOAT(0)
    for j in range(len(buffer)):
        out_d[j] = BYTE(INT(buffer[j] * factor + FLOAT(ZERO + 0.5)))
    return top / FLOAT(127)


@njit(**LOOP)
def round_rows(round_one: Any, job: Any, dtype: Any) -> None:
    """Rounds the rows of a job; what does it to one, as `round_row`."""
    x, out = rows(job, 0, dtype), rows(job, 1, BYTE)
    steps = rows(job, 2, FLOAT)
    buffer = np.empty(x.shape[1], FLOAT)
    start, stop = share(job[0])
    for i in range(start, stop):
        copy(buffer, x[i])
        steps[i, 0] = round_one(buffer, out[i])


@njit(**LOOP)
def _rounded(job: Any, dtype: Any) -> None:
    round_rows(round_row, job, dtype)


@compiled
def _rounded_loop(job: Any) -> None:
    by_dtype(_rounded, job)


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x, rotated, in 254 steps; see `tallrec.llm.int8`.

    Args:
        x: [.., d], d a multiple of 64.

    Returns:
        uint8 [.., d] with 128 for 0, and the size of a row's steps, float32 [.., 1].
    """
    x, out = x.contiguous(), torch.empty(x.shape, dtype=torch.uint8)
    steps = torch.empty(*x.shape[:-1], 1)
    run(_rounded_loop, x, out, steps)
    return out, steps


@njit(**LOOP)
def _scaled(job: Any, dtype: Any) -> None:
    x, scale = rows(job, 0, dtype), rows(job, 1, FLOAT)
    start, stop = share(job[0])
    for i in range(start, stop):
        x_d, factor = x[i], scale[i, 0]
        for j in range(len(x_d)):
            x_d[j] = narrow(wide(x_d[j]) * factor, x_d[j])


@compiled
def _scaled_loop(job: Any) -> None:
    by_dtype(_scaled, job)


def scaled_(x: Tensor, scale: Tensor) -> Tensor:
    """Rows times a number each, in place."""
    run(_scaled_loop, x, scale)
    return x


@njit(**LOOP)
def gate_row(out_d: Any, gate_d: Any, up_d: Any, factor: Any) -> None:
    """silu(gate) * up, both to be scaled."""
    for j in range(len(out_d)):
        g = wide(gate_d[j]) * factor
        out_d[j] = g * sigmoid(g) * wide(up_d[j]) * factor


@njit(**LOOP)
def gate_round_row(gate_d: Any, up_d: Any, factor: Any, out_d: Any) -> Any:
    """What `gate_row` gives, as `round_row` leaves it; gate becomes something else."""
    gate_row(gate_d, gate_d, up_d, factor)
    return round_row(gate_d, out_d)


@njit(**LOOP)
def gate_row_backward(slopes: Any, of_grad: Any, of_both: Any) -> None:
    """The gradients of gate and up, of that of `gate_row`; a factor comes with each."""
    (d_gate, d_up), (grad_d, grad_factor), (gate_d, up_d, factor) = slopes, of_grad, of_both
    for j in range(len(d_gate)):
        g, slope = wide(gate_d[j]) * factor, wide(grad_d[j]) * grad_factor
        s = sigmoid(g)
        d_up[j] = slope * g * s
        d_gate[j] = slope * wide(up_d[j]) * factor * s * (FLOAT(1) + g * (FLOAT(1) - s))


@njit(**LOOP)
def _gated_rounded(job: Any, dtype: Any) -> None:
    both, scale = rows(job, 0, dtype), rows(job, 1, FLOAT)
    out, steps = rows(job, 2, BYTE), rows(job, 3, FLOAT)
    buffer = np.empty(out.shape[1], FLOAT)
    start, stop = share(job[0])
    for i in range(start, stop):
        gate_row(buffer, both[i, : len(buffer)], both[i, len(buffer) :], scale[i, 0])
        steps[i, 0] = round_row(buffer, out[i])


@compiled
def _gated_rounded_loop(job: Any) -> None:
    by_dtype(_gated_rounded, job)


def gated_rounded(both: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """silu(gate) * up as `rounded` gives it.

    Args:
        both: gate and up side by side, [.., 2 d], each row to be scaled.
        scale: By these, float32 [.., 1].
    """
    out = torch.empty(*both.shape[:-1], both.shape[-1] // 2, dtype=torch.uint8)
    steps = torch.empty_like(scale)
    run(_gated_rounded_loop, both, scale, out, steps)
    return out, steps


@njit(**LOOP)
def _gated_backward_rounded(job: Any, dtype: Any) -> None:
    grad, grad_scale, both = rows(job, 0, dtype), rows(job, 1, FLOAT), rows(job, 2, dtype)
    scale, out, steps = rows(job, 3, FLOAT), rows(job, 4, BYTE), rows(job, 5, FLOAT)
    width, buffer = grad.shape[1], np.empty(both.shape[1], FLOAT)
    d_gate, d_up = buffer[:width], buffer[width:]
    start, stop = share(job[0])
    for i in range(start, stop):
        of_both = both[i, :width], both[i, width:], scale[i, 0]
        gate_row_backward((d_gate, d_up), (grad[i], grad_scale[i, 0]), of_both)
        steps[i, 0] = round_row(buffer, out[i])


@compiled
def _gated_backward_rounded_loop(job: Any) -> None:
    by_dtype(_gated_backward_rounded, job)


def gated_backward_rounded(
    grad: Tensor, grad_scale: Tensor, both: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up side by side as `rounded` gives them; see `gated_rounded`.

    Args:
        grad: Of silu(gate) * up, [.., d], each row to be scaled.
        grad_scale: By these, float32 [.., 1].
        both: As there.
        scale: As there.
    """
    out, steps = torch.empty(both.shape, dtype=torch.uint8), torch.empty_like(scale)
    run(_gated_backward_rounded_loop, grad, grad_scale, both, scale, out, steps)
    return out, steps


def multiplied(
    loop: compiled, whole: Tensor, weights: Tensor, steps_o: Tensor, dtype: torch.dtype
) -> Tensor:
    """y_no of rows and weights that are rounded, each output times the size of its steps.

    Args:
        loop: What multiplies.
        whole: uint8 [.., i], 128 for 0.
        weights: As the loop's `packed` gives them.
        steps_o: float32.
        dtype: Of what comes out.
    """
    y = torch.empty(*whole.shape[:-1], len(steps_o), dtype=dtype)
    run(loop, y, whole, weights, steps_o.view(1, -1))
    return y
