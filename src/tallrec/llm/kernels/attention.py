"""Passes of attention over the scores of queries and keys, in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tallrec.llm.kernels.arithmetic import LOG2_E, exp2, narrow, of_order, order, wide
from tallrec.llm.kernels.native import FLOAT, INT, LONG, LOOP, by_dtype, compiled, rows, run, share

_LEAST = INT(-0x7FFFFFFF)


@njit(**LOOP)
def _softmax(job: Any, dtype: Any) -> None:
    own, shared, seen = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, INT)
    factor, bases = rows(job, 3, FLOAT)[0, 0] * LOG2_E, rows(job, 4, FLOAT)
    exp_own, exp_shared = np.empty(own.shape[1], FLOAT), np.empty(shared.shape[1], FLOAT)
    start, stop = share(job[0])
    for i in range(start, stop):
        n = seen[i, 0]
        width = min(own.shape[1], (n + 15) // 16 * 16)  # whole vectors; what is too much counts 0
        own_k, shared_s, rest = own[i, :width], shared[i], own[i, width:]
        most = _LEAST
        for j in range(len(own_k)):
            key = order(wide(own_k[j]))
            key = key if INT(j) < n else _LEAST
            most = key if key > most else most
        for j in range(len(shared_s)):
            key = order(wide(shared_s[j]))
            most = key if key > most else most
        top = of_order(most)
        total = FLOAT(0)
        for j in range(len(own_k)):
            exp = exp2((wide(own_k[j]) - top) * factor)
            exp = exp if INT(j) < n else FLOAT(0)
            exp_own[j] = exp
            total += exp
        for j in range(len(shared_s)):
            exp = exp2((wide(shared_s[j]) - top) * factor)
            exp_shared[j] = exp
            total += exp
        inverse, bases[i, 0] = FLOAT(1) / total, top * factor + np.log2(total)
        for j in range(len(own_k)):
            own_k[j] = narrow(exp_own[j] * inverse, own_k[j])
        for j in range(len(shared_s)):
            shared_s[j] = narrow(exp_shared[j] * inverse, shared_s[j])
        for j in range(len(rest)):
            rest[j] = 0


@compiled
def _softmax_loop(job: Any) -> None:
    by_dtype(_softmax, job)


def softmax_(own: Tensor, shared: Tensor, seen: Tensor, scaling: float) -> Tensor:
    """Softmax of scaling times scores, in place.

    Args:
        own: Scores, [.., k]; of each row the first keys are seen, the others become 0.
        shared: More scores of the same rows, [.., s], all seen; s may be 0.
        seen: How many of its own keys a row sees, at least 1, int32 [rows, 1].
        scaling: A positive factor of all scores.

    Returns:
        What `softmax_backward_` needs of each row, float32 [rows, 1]: the logarithm of the sum of
        its exponentials, to base 2.
    """
    bases = torch.empty(len(seen), 1)
    run(_softmax_loop, own, shared, seen, torch.tensor([scaling]), bases)
    return bases


@njit(**LOOP)
def _softmax_backward(job: Any, dtype: Any) -> None:
    own, shared = rows(job, 0, dtype), rows(job, 1, dtype)
    d_own, d_shared = rows(job, 2, dtype), rows(job, 3, dtype)
    seen, bases = rows(job, 4, INT), rows(job, 5, FLOAT)
    scaling = rows(job, 6, FLOAT)[0, 0]
    factor = scaling * LOG2_E
    own_p, shared_p = np.empty(own.shape[1], FLOAT), np.empty(shared.shape[1], FLOAT)
    start, stop = share(job[0])
    for i in range(start, stop):
        n, base, drift = seen[i, 0], bases[i, 0], FLOAT(0)
        own_k, shared_s, d_own_k, d_shared_s = own[i], shared[i], d_own[i], d_shared[i]
        for j in range(len(own_k)):
            p = exp2(wide(own_k[j]) * factor - base)
            p = p if INT(j) < n else FLOAT(0)
            own_p[j] = p
            drift += p * wide(d_own_k[j])
        for j in range(len(shared_s)):
            p = exp2(wide(shared_s[j]) * factor - base)
            shared_p[j] = p
            drift += p * wide(d_shared_s[j])
        for j in range(len(own_k)):
            d_own_k[j] = narrow(own_p[j] * (wide(d_own_k[j]) - drift) * scaling, own_k[j])
            own_k[j] = narrow(own_p[j], own_k[j])
        for j in range(len(shared_s)):
            slope = shared_p[j] * (wide(d_shared_s[j]) - drift) * scaling
            d_shared_s[j] = narrow(slope, shared_s[j])
            shared_s[j] = narrow(shared_p[j], shared_s[j])


@compiled
def _softmax_backward_loop(job: Any) -> None:
    by_dtype(_softmax_backward, job)


def softmax_backward_(
    own: Tensor,
    shared: Tensor,
    d_own: Tensor,
    d_shared: Tensor,
    seen: Tensor,
    bases: Tensor,
    scaling: float,
) -> None:
    """Turns scores into what `softmax_` made of them, and gradients of that into the scores'.

    In place; `bases` is what `softmax_` gave.
    """
    run(_softmax_backward_loop, own, shared, d_own, d_shared, seen, bases, torch.tensor([scaling]))


@njit(**LOOP)
def _add_rows(job: Any, dtype: Any) -> None:
    part, total, places = rows(job, 0, dtype), rows(job, 1, FLOAT), rows(job, 2, LONG)
    start, stop = share(part.shape[1])
    for i in range(len(part)):
        part_d, total_d = part[i, start:stop], total[places[i, 0], start:stop]
        for j in range(len(part_d)):
            total_d[j] += wide(part_d[j])


@compiled
def _add_rows_loop(job: Any) -> None:
    by_dtype(_add_rows, job)


def add_rows_(total_nd: Tensor, places: Tensor, part: Tensor) -> None:
    """Adds each row of part to a row of total (float32), as `index_add_`.

    Many rows may go to the same place: threads share the columns.
    """
    run(_add_rows_loop, part, total_nd, places.view(-1, 1))
