"""The gradients behind queries, keys and values; see `tallrec.llm.kernels.projected`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numba import njit
from torch import Tensor

from tallrec.llm.kernels.arithmetic import copy
from tallrec.llm.kernels.int8 import BYTE, no_rounded, round_row
from tallrec.llm.kernels.lora import FIRST_O, FIRST_R, LAST_O, LAST_R
from tallrec.llm.kernels.native import (
    FLOAT,
    LONG,
    LOOP,
    by_dtype,
    compiled,
    rows,
    run,
    share,
    thread,
)
from tallrec.llm.kernels.projected import (
    Stacked,
    four_tokens,
    keep,
    multiply_some,
    norm_again,
)
from tallrec.llm.kernels.tiles import ROWS, multiply
from tallrec.llm.kernels.turned import turn_heads


@njit(**LOOP)
def _adapter_backward(four: Any, one: Any, first: Any, matrices: Any) -> None:
    """Adds to the gradients by way of an adapter: of the norm's result, of A and of B."""
    (a, b, da, db), (o, end) = matrices, (one[FIRST_O], one[LAST_O])
    r, last, width = one[FIRST_R], one[LAST_R], four.x.shape[1]
    grads, slopes = four.y[:, o:end], four.slopes[:, r:last]
    keep(four, one, first)
    for rank in range(r, last, ROWS):
        multiply_some(four.slopes, four.y, o, end, b, rank)
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
    plain_q, plain_k, plain_v = rows(job, 17, dtype), rows(job, 18, dtype), rows(job, 19, dtype)
    of_q, of_k, own = dq.shape[1], dq.shape[1] + dk.shape[1], thread() * len(a)
    matrices = a, b, da[own : own + len(a)], db[own : own + len(a)]  # a thread's own sums
    four = four_tokens(x.shape[1], of_k + dv.shape[1], len(a))
    start, stop = share(job[0])
    for first in range(start, stop, ROWS):
        count = min(ROWS, stop - first)
        four.y[:, :] = four.low[:, :] = four.dx[:, :] = FLOAT(0)
        for t in range(count):
            n, grads_o = first + t, four.y[t]
            turn_heads(grads_o[:of_q], dq[n], cos[n], sin[n], (FLOAT(1), FLOAT(-1)))
            turn_heads(grads_o[of_q:of_k], dk[n], cos[n], sin[n], (FLOAT(1), FLOAT(-1)))
            copy(grads_o[of_k:], dv[n])
            if len(table):
                norm_again(four.x[t], x[n], weight[0], scale[n, 0])
                four.low[t, :] = low[n]
        for one in table:
            _adapter_backward(four, one, first, matrices)
        for t in range(count):
            n, grads_o = first + t, four.y[t]
            if len(dx):
                copy(dx[n], four.dx[t])
            if len(whole):
                steps[n, 0] = round_row(grads_o, whole[n])
            else:
                copy(plain_q[n], grads_o[:of_q])
                copy(plain_k[n], grads_o[of_q:of_k])
                copy(plain_v[n], grads_o[of_k:])


@compiled
def _projected_backward_loop(job: Any) -> None:
    by_dtype(_projected_backward, job)


def projected_backward(
    grads: Sequence[Tensor],
    normed: tuple[Tensor, Tensor, Tensor],
    adapters: Stacked,
    turn: Sequence[Tensor],
    low: Tensor,
    *,
    rounds: bool,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """The gradients behind `projected`.

    Args:
        grads: Of queries, keys and values, contiguous.
        normed: As in `projected`, like all the others.
        adapters: As there.
        turn: As there.
        low: What it gave.
        rounds: Whether the product is of eight bits.

    Returns:
        What products are to be given: rounded rows, side by side, and the size of their steps; or
        the gradients of the three.
        The gradients by way of adapters: of the norm's result, of a_ri, and of b_ro.
    """
    x, (a, b, table), threads = normed[0], adapters, torch.get_num_threads()
    shape, o = x.shape[:-1], sum(grad.shape[-1] for grad in grads)
    if rounds:
        given = [torch.empty(*shape, o, dtype=torch.uint8), torch.empty(*shape, 1)]
        places = *given, *(grad.new_empty(0, grad.shape[-1]) for grad in grads)
    else:
        given = [torch.empty_like(grad) for grad in grads]
        places = *no_rounded(x), *given
    dx = torch.empty(x.shape if len(table) else (0, x.shape[-1]), dtype=x.dtype)
    da, db = (torch.zeros(threads, *weight.shape) for weight in (a, b))
    run(_projected_backward_loop, *normed, *grads, a, b, table, *turn, low, dx, da, db, *places)
    return given, dx, da.sum(0), db.sum(0)
