"""LoRA's adapter of a linear layer, with dropout, beside the layer's own product."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tallrec.llm.kernels.arithmetic import narrow, wide
from tallrec.llm.kernels.native import (
    FLOAT,
    LONG,
    LOOP,
    PART,
    UINT,
    by_dtype,
    compiled,
    rows,
    run,
    share,
    thread,
)

# Shape letters: n tokens, i inputs and o outputs of a layer, r rank.

# Columns of a table of adapters: what `draw` reads, and which outputs and ranks are its own.
COLUMNS = 7
KEY, OTHER, LEAST, FIRST_O, LAST_O, FIRST_R, LAST_R = range(COLUMNS)


@njit(**PART)
def _hashed(i: Any, key: Any, other: Any) -> Any:
    """32 bits of the i-th number of two keys (the mixing is Wellons' lowbias32, 2018)."""
    bits = UINT(UINT(i * UINT(0x9E3779B9)) + key)
    bits = UINT(UINT(bits ^ UINT(bits >> UINT(16))) * UINT(0x7FEB352D))
    bits = UINT(UINT(bits ^ UINT(bits >> UINT(15))) ^ other)
    bits = UINT(bits * UINT(0x846CA68B))
    return UINT(bits ^ UINT(bits >> UINT(16)))


@njit(**LOOP)
def draw(kept: Any, row: Any, one: Any) -> None:
    """1 where an element of a row stays, 0 where it is left out; `one` is of a table's rows."""
    key, other, least = UINT(one[KEY]), UINT(one[OTHER]), UINT(one[LEAST])
    before = UINT(row * len(kept))
    for j in range(len(kept)):
        kept[j] = FLOAT(0) if _hashed(UINT(before + UINT(j)), key, other) < least else FLOAT(1)


@njit(**LOOP)
def _take(out: Any, x: Any, kept: Any) -> None:
    """What stays of a row, in float32."""
    for j in range(len(out)):
        out[j] = wide(x[j]) if kept[j] > 0 else FLOAT(0)


@njit(**LOOP)
def _take_all(out: Any, x: Any) -> None:
    for j in range(len(out)):
        out[j] = wide(x[j])


@njit(**LOOP)
def _without(job: Any, dtype: Any) -> None:
    x, out, numbers = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, LONG)
    kept = np.empty(x.shape[1], FLOAT)
    start, stop = share(job[0])
    for n in range(start, stop):
        x_d, out_d = x[n], out[n]
        draw(kept, n, numbers[0])
        for j in range(len(x_d)):
            out_d[j] = x_d[j] if kept[j] > 0 else dtype(0)


@compiled
def _without_loop(job: Any) -> None:
    by_dtype(_without, job)


def without(x: Tensor, seed: int, p: float) -> Tensor:
    """A copy of x with 0 in place of elements that a seed draws with probability p."""
    x, out = x.contiguous(), torch.empty(x.shape, dtype=x.dtype)
    run(_without_loop, x, out, torch.tensor(drawn(seed, p)))
    return out


@njit(**LOOP)
def _four_products(out: Any, x: Any, weights: Any, r: Any) -> Any:
    """Of a row with four rows of weights, into out from r on."""
    one, two, three, four = weights[r], weights[r + 1], weights[r + 2], weights[r + 3]
    first, second, third, fourth = FLOAT(0), FLOAT(0), FLOAT(0), FLOAT(0)
    for j in range(len(x)):
        first += x[j] * one[j]
        second += x[j] * two[j]
        third += x[j] * three[j]
        fourth += x[j] * four[j]
    out[r], out[r + 1], out[r + 2], out[r + 3] = first, second, third, fourth
    return first, second, third, fourth


@njit(**LOOP)
def _four_of(x: Any, first: Any) -> Any:
    """Four rows from one on."""
    return x[first], x[first + 1], x[first + 2], x[first + 3]


@njit(**LOOP)
def _add_four(total: Any, factors: Any, rows: Any) -> None:
    """Adds four rows, each times its factor."""
    one, two, three, four = rows
    f, g, h, k = factors
    for j in range(len(total)):
        total[j] += f * one[j] + g * two[j] + h * three[j] + k * four[j]


@njit(**LOOP)
def _adapted(job: Any, dtype: Any) -> None:
    x, y, a, b = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, FLOAT), rows(job, 3, FLOAT)
    low, numbers = rows(job, 4, FLOAT), rows(job, 5, LONG)
    kept, x_i = np.empty(x.shape[1], FLOAT), np.empty(x.shape[1], FLOAT)
    y_o = np.empty(y.shape[1], FLOAT)
    start, stop = share(job[0])
    for n in range(start, stop):
        y_n, low_n = y[n], low[n]
        draw(kept, n, numbers[0])
        _take(x_i, x[n], kept)
        _take_all(y_o, y_n)
        for r in range(0, len(a), 4):
            _add_four(y_o, _four_products(low_n, x_i, a, r), _four_of(b, r))
        for j in range(len(y_o)):
            y_n[j] = narrow(y_o[j], y_n[j])


@compiled
def _adapted_loop(job: Any) -> None:
    by_dtype(_adapted, job)


def adapted_(y: Tensor, x: Tensor, a_ri: Tensor, b_ro: Tensor, seed: int, p: float) -> Tensor:
    """Adds B A x to y in place, where a seed leaves out elements of x with probability p.

    Args:
        y: [.., o] in the dtype of the model, as x, [.., i].
        x: What the layer reads.
        a_ri: In float32, as b_ro.
        b_ro: B, transposed.
        seed: Of what is left out.
        p: 0 leaves out nothing.

    Returns:
        A x, float32 [.., r], for the gradients.
    """
    low = torch.empty(*x.shape[:-1], len(a_ri))
    run(_adapted_loop, x, y, a_ri, b_ro, low, torch.tensor(drawn(seed, p)))
    return low


@njit(**LOOP)
def _adapted_backward(job: Any, dtype: Any) -> None:
    x, grad, dx = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, dtype)
    a, b, low = rows(job, 3, FLOAT), rows(job, 4, FLOAT), rows(job, 5, FLOAT)
    da, db, numbers = rows(job, 6, FLOAT), rows(job, 7, FLOAT), rows(job, 8, LONG)
    kept, dx_i = np.empty(x.shape[1], FLOAT), np.empty(x.shape[1], FLOAT)
    x_4i, grad_4o = np.zeros((4, x.shape[1]), FLOAT), np.zeros((4, grad.shape[1]), FLOAT)
    slopes, lows = np.empty((4, len(a)), FLOAT), np.empty((4, len(a)), FLOAT)
    own = thread() * len(a)  # of the sums, one for each thread
    start, stop = share(job[0])
    for first in range(start, stop, 4):  # the sums are gone over once for four tokens
        slopes[:, :] = lows[:, :] = FLOAT(0)
        for t in range(min(4, stop - first)):
            n, dx_n, slopes_r, lows_r = first + t, dx[first + t], slopes[t], lows[t]
            draw(kept, n, numbers[0])
            _take(x_4i[t], x[n], kept)
            _take_all(grad_4o[t], grad[n])
            lows_r[:], dx_i[:] = low[n], FLOAT(0)
            for r in range(0, len(a), 4):
                _add_four(dx_i, _four_products(slopes_r, grad_4o[t], b, r), _four_of(a, r))
            for j in range(len(dx_i)):
                dx_n[j] = narrow(dx_i[j] * kept[j], dx_n[j])
        for r in range(len(a)):
            _add_four(da[own + r], _four_of(slopes[:, r], 0), _four_of(x_4i, 0))
            _add_four(db[own + r], _four_of(lows[:, r], 0), _four_of(grad_4o, 0))


@compiled
def _adapted_backward_loop(job: Any) -> None:
    by_dtype(_adapted_backward, job)


def adapted_backward(
    grad: Tensor, x: Tensor, a_ri: Tensor, b_ro: Tensor, low: Tensor, seed: int, p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, a_ri and b_ro, the latter in float32; see `adapted_`."""
    dx, threads = torch.empty_like(x), torch.get_num_threads()
    da, db = (torch.zeros(threads, *weight.shape) for weight in (a_ri, b_ro))
    run(_adapted_backward_loop, x, grad, dx, a_ri, b_ro, low, da, db, torch.tensor(drawn(seed, p)))
    return dx, da.sum(0), db.sum(0)


@lru_cache(maxsize=256)  # a layer's backward pass asks for the same
def drawn(seed: int, p: float) -> list[int]:
    """What `draw` reads, in the order of its columns."""
    keys = np.random.SeedSequence(seed).generate_state(2).tolist()
    return [*keys, min(round(p * 2**32), 2**32 - 1)]
