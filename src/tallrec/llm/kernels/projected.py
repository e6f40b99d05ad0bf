"""Queries, keys and values between products of eight bits, forward and backward.

After the product: its scale, LoRA's adapters of the three with their dropout, and rotation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tallrec.llm.kernels.int8 import BYTE, round_row
from tallrec.llm.kernels.lora import FIRST_O, FIRST_R, LAST_O, LAST_R, draw
from tallrec.llm.kernels.native import (
    FLOAT,
    LONG,
    LOOP,
    PART,
    by_dtype,
    compiled,
    narrow,
    rows,
    run,
    share,
    thread,
    wide,
)
from tallrec.llm.kernels.tiles import ROWS, multiply

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
def _turn(out: Any, x: Any, cos_e: Any, sin_e: Any, sign: Any) -> None:
    """Rotates each head of a row by halves."""
    half = len(cos_e) // 2
    for at in range(0, len(out), 2 * half):
        first, second = x[at : at + half], x[at + half : at + 2 * half]
        out_first, out_second = out[at : at + half], out[at + half : at + 2 * half]
        for j in range(len(out_first)):
            one, other = wide(first[j]), wide(second[j])
            c, s = wide(cos_e[j]), wide(sin_e[j]) * sign
            out_first[j] = narrow(one * c - other * s, out_first[j])
            out_second[j] = narrow(other * c + one * s, out_second[j])


@njit(**LOOP)
def _copy(out: Any, x: Any) -> None:
    for j in range(len(out)):
        out[j] = narrow(wide(x[j]), out[j])


@njit(**LOOP)
def _norm_again(out: Any, x_i: Any, weight_i: Any, inverse: Any) -> None:
    for j in range(len(out)):
        out[j] = wide(x_i[j]) * (inverse * wide(weight_i[j]))


class _FourTokens(NamedTuple):
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
def _four_tokens(i: Any, o: Any, r: Any) -> Any:
    """Places for them."""
    x, y = np.zeros((ROWS, i), FLOAT), np.zeros((ROWS, o), FLOAT)
    stays, kept = np.zeros((ROWS, i), FLOAT), np.zeros((ROWS, i), FLOAT)
    low, slopes = np.zeros((ROWS, r), FLOAT), np.zeros((ROWS, r), FLOAT)
    dx, dx_one = np.zeros((ROWS, i), FLOAT), np.zeros((ROWS, i), FLOAT)
    return _FourTokens(x, y, stays, kept, low, slopes, dx, dx_one)


@njit(**LOOP)
def _keep(four: Any, one: Any, first: Any) -> None:
    """What stays of four tokens from the first on."""
    for t in range(ROWS):
        x_i, stays_i, kept_i = four.x[t], four.stays[t], four.kept[t]
        draw(stays_i, first + t, one)
        for j in range(len(kept_i)):
            kept_i[j] = x_i[j] * stays_i[j]


@njit(**PART)
def _products(out: Any, x: Any, o: Any, end: Any, weights: Any, r: Any) -> None:
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
def _projected(job: Any, dtype: Any) -> None:
    y, factors, bias = rows(job, 0, dtype), rows(job, 1, FLOAT), rows(job, 2, dtype)
    x, weight, scale = rows(job, 3, dtype), rows(job, 4, dtype), rows(job, 5, FLOAT)
    a, b, table = rows(job, 6, FLOAT), rows(job, 7, FLOAT), rows(job, 8, LONG)
    cos, sin, low = rows(job, 9, dtype), rows(job, 10, dtype), rows(job, 11, FLOAT)
    q, k, v = rows(job, 12, dtype), rows(job, 13, dtype), rows(job, 14, dtype)
    of_q, of_k = q.shape[1], q.shape[1] + k.shape[1]
    four = _four_tokens(x.shape[1], y.shape[1], len(a))
    start, stop = share(job[0])
    for first in range(start, stop, ROWS):
        count = min(ROWS, stop - first)
        for t in range(count):
            y_o, out, bias_o, factor = y[first + t], four.y[t], bias[0], factors[first + t, 0]
            for j in range(len(out)):
                out[j] = wide(y_o[j]) * factor + wide(bias_o[j])
            if len(table):
                _norm_again(four.x[t], x[first + t], weight[0], scale[first + t, 0])
        for one in table:
            o, end, low_r = one[FIRST_O], one[LAST_O], four.low[:, one[FIRST_R] : one[LAST_R]]
            _keep(four, one, first)
            for r in range(one[FIRST_R], one[LAST_R], ROWS):
                _products(four.low, four.kept, 0, four.kept.shape[1], a, r)
            n_ranks = low_r.shape[1]
            multiply(low_r, b[one[FIRST_R] :], four.y[:, o:end], ROWS, end - o, n_ranks, True)
        for t in range(count):
            n, out = first + t, four.y[t]
            low[n, :] = four.low[t]
            _turn(q[n], out[:of_q], cos[n], sin[n], FLOAT(1))
            _turn(k[n], out[of_q:of_k], cos[n], sin[n], FLOAT(1))
            _copy(v[n], out[of_k:])


@compiled
def _projected_loop(job: Any) -> None:
    by_dtype(_projected, job)


def projected(
    y: Tensor,
    factors: Tensor,
    bias_o: Tensor,
    normed: tuple[Tensor, Tensor, Tensor],
    adapters: Stacked,
    turn: tuple[Tensor, Tensor],
    widths: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values.

    Args:
        y: Of the three side by side what a product gives, each row to be scaled.
        factors: By these.
        bias_o: What is added then.
        normed: What the norm before has read, its weight, and 1 / rms(x).
        adapters: What is added of the norm's result.
        turn: What queries and keys are rotated by, cosines and sines in the dtype of y, [n, e].
        widths: Of the three.

    Returns:
        The three, and A x of adapters, float32 [n, r], for the gradients.
    """
    q, k, v = (torch.empty(*y.shape[:-1], width, dtype=y.dtype) for width in widths)
    low = torch.empty(factors.numel(), len(adapters.a_ri))
    run(_projected_loop, y, factors, bias_o, *normed, *adapters, *turn, low, q, k, v)
    return q, k, v, low


@njit(**LOOP)
def _adapter_backward(four: Any, one: Any, first: Any, matrices: Any) -> None:
    """Adds to the gradients by way of an adapter: of the norm's result, of A and of B."""
    (a, b, da, db), (o, end) = matrices, (one[FIRST_O], one[LAST_O])
    r, last, width = one[FIRST_R], one[LAST_R], four.x.shape[1]
    grads, slopes = four.y[:, o:end], four.slopes[:, r:last]
    _keep(four, one, first)
    for rank in range(r, last, ROWS):
        _products(four.slopes, four.y, o, end, b, rank)
    multiply(slopes, a[r:], four.dx_one, ROWS, width, last - r, False)
    for t in range(ROWS):
        dx_i, dx_one_i, stays_i = four.dx[t], four.dx_one[t], four.stays[t]
        for j in range(len(dx_i)):
            dx_i[j] += dx_one_i[j] * stays_i[j]
    up, low = slopes.T.copy(), four.low[:, r:last].T.copy()
    multiply(up, four.kept, da[r:], last - r, width, ROWS, True)
    multiply(low, grads, db[r:], last - r, end - o, ROWS, True)


@njit(**LOOP)
def _projected_backward(job: Any, dtype: Any) -> None:
    x, weight, scale = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, FLOAT)
    dq, dk, dv = rows(job, 3, dtype), rows(job, 4, dtype), rows(job, 5, dtype)
    a, b, table = rows(job, 6, FLOAT), rows(job, 7, FLOAT), rows(job, 8, LONG)
    cos, sin, low = rows(job, 9, dtype), rows(job, 10, dtype), rows(job, 11, FLOAT)
    dx, da, db = rows(job, 12, dtype), rows(job, 13, FLOAT), rows(job, 14, FLOAT)
    whole, steps = rows(job, 15, BYTE), rows(job, 16, FLOAT)
    of_q, of_k, own = dq.shape[1], dq.shape[1] + dk.shape[1], thread() * len(a)
    matrices = a, b, da[own : own + len(a)], db[own : own + len(a)]  # a thread's own sums
    four = _four_tokens(x.shape[1], whole.shape[1], len(a))
    start, stop = share(job[0])
    for first in range(start, stop, ROWS):
        count = min(ROWS, stop - first)
        four.y[:, :] = four.low[:, :] = four.dx[:, :] = FLOAT(0)
        for t in range(count):
            n, grads_o = first + t, four.y[t]
            _turn(grads_o[:of_q], dq[n], cos[n], sin[n], FLOAT(-1))
            _turn(grads_o[of_q:of_k], dk[n], cos[n], sin[n], FLOAT(-1))
            _copy(grads_o[of_k:], dv[n])
            if len(table):
                _norm_again(four.x[t], x[n], weight[0], scale[n, 0])
                four.low[t, :] = low[n]
        for one in table:
            _adapter_backward(four, one, first, matrices)
        for t in range(count):
            if len(dx):
                _copy(dx[first + t], four.dx[t])
            steps[first + t, 0] = round_row(four.y[t], whole[first + t])


@compiled
def _projected_backward_loop(job: Any) -> None:
    by_dtype(_projected_backward, job)


def projected_backward(
    grads: list[Tensor],
    normed: tuple[Tensor, Tensor, Tensor],
    adapters: Stacked,
    turn: tuple[Tensor, Tensor],
    low: Tensor,
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, Tensor]:
    """The gradients behind `projected`.

    Args:
        grads: Of queries, keys and values, contiguous.
        normed: As in `projected`, like all the others.
        adapters: As there.
        turn: As there.
        low: What it gave.

    Returns:
        What the product is to be given: rounded rows, side by side, and the size of their steps.
        The gradients by way of adapters: of the norm's result, of a_ri, and of b_ro.
    """
    x, (a, b, table), threads = normed[0], adapters, torch.get_num_threads()
    o, shape = sum(grad.shape[-1] for grad in grads), x.shape[:-1]
    whole, steps = torch.empty(*shape, o, dtype=torch.uint8), torch.empty(*shape, 1)
    dx = torch.empty(x.shape if len(table) else (0, x.shape[-1]), dtype=x.dtype)
    da, db = (torch.zeros(threads, *weight.shape) for weight in (a, b))
    more = a, b, table, *turn, low, dx, da, db, whole, steps
    run(_projected_backward_loop, *normed, *grads, *more)
    return (whole, steps), dx, da.sum(0), db.sum(0)
