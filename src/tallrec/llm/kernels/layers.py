"""Passes of a layer over its tokens; arrays are [.., d], their rows independent of each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tallrec.llm.kernels.arithmetic import narrow, sigmoid, wide
from tallrec.llm.kernels.native import FLOAT, LONG, LOOP, by_dtype, compiled, rows, run, share


@njit(**LOOP)
def _norm(job: Any, dtype: Any) -> None:
    x, weight, out = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, dtype)
    scale, epsilon = rows(job, 3, FLOAT), rows(job, 4, FLOAT)
    start, stop = share(job[0])
    for i in range(start, stop):
        x_d, weight_d, out_d = x[i], weight[0], out[i]
        squares = FLOAT(0)
        for j in range(len(x_d)):
            squares += wide(x_d[j]) * wide(x_d[j])
        inverse = FLOAT(1) / np.sqrt(squares / FLOAT(len(x_d)) + epsilon[0, 0])
        scale[i, 0] = inverse
        for j in range(len(x_d)):
            out_d[j] = narrow(wide(x_d[j]) * inverse * wide(weight_d[j]), x_d[j])


@compiled
def _norm_loop(job: Any) -> None:
    by_dtype(_norm, job)


def norm(x: Tensor, weight_d: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """RMS norm, x / rms(x) * weight, and 1 / rms(x) in float32, [.., 1]."""
    x, out = x.contiguous(), torch.empty(x.shape, dtype=x.dtype)
    scale = torch.empty(*x.shape[:-1], 1)
    run(_norm_loop, x, weight_d, out, scale, torch.tensor([epsilon]))
    return out, scale


@njit(**LOOP)
def _norm_backward(job: Any, dtype: Any) -> None:
    x, weight, grad = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, dtype)
    dx, scale = rows(job, 3, dtype), rows(job, 4, FLOAT)
    start, stop = share(job[0])
    for i in range(start, stop):
        x_d, weight_d, grad_d, dx_d = x[i], weight[0], grad[i], dx[i]
        inverse = scale[i, 0]
        drift = FLOAT(0)
        for j in range(len(x_d)):
            drift += wide(grad_d[j]) * wide(weight_d[j]) * wide(x_d[j])
        drift *= inverse * inverse / FLOAT(len(x_d))
        for j in range(len(x_d)):
            slope = wide(grad_d[j]) * wide(weight_d[j]) - wide(x_d[j]) * drift
            dx_d[j] = narrow(slope * inverse, x_d[j])


@compiled
def _norm_backward_loop(job: Any) -> None:
    by_dtype(_norm_backward, job)


def norm_backward(grad: Tensor, x: Tensor, weight_d: Tensor, scale: Tensor) -> Tensor:
    """The gradient of x."""
    x, dx = x.contiguous(), torch.empty(x.shape, dtype=x.dtype)
    run(_norm_backward_loop, x, weight_d, grad.contiguous(), dx, scale)
    return dx


@njit(**LOOP)
def _gated(job: Any, dtype: Any) -> None:
    gate, up, out = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, dtype)
    start, stop = share(job[0])
    for i in range(start, stop):
        gate_d, up_d, out_d = gate[i], up[i], out[i]
        for j in range(len(gate_d)):
            g = wide(gate_d[j])
            out_d[j] = narrow(g * sigmoid(g) * wide(up_d[j]), gate_d[j])


@compiled
def _gated_loop(job: Any) -> None:
    by_dtype(_gated, job)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    out = torch.empty(gate.shape, dtype=gate.dtype)
    run(_gated_loop, gate.contiguous(), up.contiguous(), out)
    return out


@njit(**LOOP)
def _gated_backward(job: Any, dtype: Any) -> None:
    gate, up, grad = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, dtype)
    d_gate, d_up = rows(job, 3, dtype), rows(job, 4, dtype)
    start, stop = share(job[0])
    for i in range(start, stop):
        gate_d, up_d, grad_d, d_gate_d, d_up_d = gate[i], up[i], grad[i], d_gate[i], d_up[i]
        for j in range(len(gate_d)):
            g, slope = wide(gate_d[j]), wide(grad_d[j])
            s = sigmoid(g)
            d_up_d[j] = narrow(slope * g * s, gate_d[j])
            d_silu = s * (FLOAT(1) + g * (FLOAT(1) - s))
            d_gate_d[j] = narrow(slope * wide(up_d[j]) * d_silu, gate_d[j])


@compiled
def _gated_backward_loop(job: Any) -> None:
    by_dtype(_gated_backward, job)


def gated_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up."""
    gate, up, grad = gate.contiguous(), up.contiguous(), grad.contiguous()
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
    run(_gated_backward_loop, gate, up, grad, d_gate, d_up)
    return d_gate, d_up


@njit(**LOOP)
def _rotated(job: Any, dtype: Any) -> None:
    x, out, cos, sin = (
        rows(job, 0, dtype),
        rows(job, 1, dtype),
        rows(job, 2, dtype),
        rows(job, 3, dtype),
    )
    sign = rows(job, 4, FLOAT)[0, 0]
    half, per_token = x.shape[1] // 2, len(x) // len(cos)
    start, stop = share(job[0])
    for i in range(start, stop):
        cos_d, sin_d = cos[i // per_token], sin[i // per_token]
        first, second = x[i, :half], x[i, half:]
        out_first, out_second = out[i, :half], out[i, half:]
        for j in range(len(out_first)):
            one, other = wide(first[j]), wide(second[j])
            c, s = wide(cos_d[j]), wide(sin_d[j]) * sign
            out_first[j] = narrow(one * c - other * s, first[j])
            out_second[j] = narrow(other * c + one * s, first[j])


@compiled
def _rotated_loop(job: Any) -> None:
    by_dtype(_rotated, job)


def rotated(x_bthd: Tensor, cos_btd: Tensor, sin_btd: Tensor, sign: float = 1.0) -> Tensor:
    """Rotary position embedding of heads by halves (Su et al., 2021); with sign -1, back.

    The first half of cos and sin is read, the second is the same. They may be those of one row.
    """
    x, out = x_bthd.contiguous(), torch.empty(x_bthd.shape, dtype=x_bthd.dtype)
    cos, sin = (y.expand(*x.shape[:2], -1).contiguous() for y in (cos_btd, sin_btd))
    run(_rotated_loop, x, out, cos, sin, torch.tensor([sign]))
    return out


@njit(**LOOP)
def _in_order(job: Any, dtype: Any) -> None:
    x, out, order = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, LONG)[0]
    start, stop = share(job[0])
    for i in range(start, stop):
        x_d, out_d = x[i], out[i]
        for j in range(len(order)):
            out_d[j] = x_d[order[j]]


@compiled
def _in_order_loop(job: Any) -> None:
    by_dtype(_in_order, job)


def in_order(x: Tensor, order_d: Tensor) -> Tensor:
    """`x.index_select(-1, order_d)`, which torch takes six times as long for."""
    out = torch.empty(x.shape, dtype=x.dtype)
    run(_in_order_loop, x, out, order_d)
    return out
