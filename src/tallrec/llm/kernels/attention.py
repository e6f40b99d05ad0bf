"""Passes of attention over the scores of queries and keys, in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tallrec.llm.kernels.native import (
    FLOAT,
    INT,
    LOG2_E,
    LONG,
    LOOP,
    compiled,
    either,
    exp2,
    narrow,
    of_order,
    order,
    rows,
    run,
    share,
    wide,
)

_LEAST = INT(-0x7FFFFFFF)


@njit(**LOOP)
def _softmax(job: Any, dtype: Any) -> None:
    own, shared, seen = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, INT)
    factor = rows(job, 3, FLOAT)[0, 0] * LOG2_E
    exp_own, exp_shared = np.empty(own.shape[1], FLOAT), np.empty(shared.shape[1], FLOAT)
    start, stop = share(job[1])
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
        inverse = FLOAT(1) / total
        for j in range(len(own_k)):
            own_k[j] = narrow(exp_own[j] * inverse, own_k[j])
        for j in range(len(shared_s)):
            shared_s[j] = narrow(exp_shared[j] * inverse, shared_s[j])
        for j in range(len(rest)):
            rest[j] = 0


@compiled
def _softmax_loop(job: Any) -> None:
    either(_softmax, job)


def softmax_(own: Tensor, shared: Tensor, seen: Tensor, scaling: float) -> None:
    """Softmax of scaling times scores, in place.

    Args:
        own: Scores, [.., k]; of each row the first keys are seen, the others become 0.
        shared: More scores of the same rows, [.., s], all seen; s may be 0.
        seen: How many of its own keys a row sees, at least 1, int32 [rows, 1].
        scaling: A positive factor of all scores.
    """
    run(_softmax_loop, own, shared, seen, torch.tensor([scaling]))


@njit(**LOOP)
def _softmax_backward(job: Any, dtype: Any) -> None:
    own, shared = rows(job, 0, dtype), rows(job, 1, dtype)
    d_own, d_shared = rows(job, 2, dtype), rows(job, 3, dtype)
    scaling = rows(job, 4, FLOAT)[0, 0]
    start, stop = share(job[1])
    for i in range(start, stop):
        own_k, shared_s, d_own_k, d_shared_s = own[i], shared[i], d_own[i], d_shared[i]
        drift = FLOAT(0)
        for j in range(len(own_k)):
            drift += wide(own_k[j]) * wide(d_own_k[j])
        for j in range(len(shared_s)):
            drift += wide(shared_s[j]) * wide(d_shared_s[j])
        for j in range(len(own_k)):
            slope = wide(own_k[j]) * (wide(d_own_k[j]) - drift) * scaling
            d_own_k[j] = narrow(slope, own_k[j])
        for j in range(len(shared_s)):
            slope = wide(shared_s[j]) * (wide(d_shared_s[j]) - drift) * scaling
            d_shared_s[j] = narrow(slope, shared_s[j])


@compiled
def _softmax_backward_loop(job: Any) -> None:
    either(_softmax_backward, job)


def softmax_backward_(
    own: Tensor, shared: Tensor, d_own: Tensor, d_shared: Tensor, scaling: float
) -> None:
    """Turns gradients of `softmax_`'s results into those of the scores, in place."""
    run(_softmax_backward_loop, own, shared, d_own, d_shared, torch.tensor([scaling]))


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
    either(_add_rows, job)


def add_rows_(total_nd: Tensor, places: Tensor, part: Tensor) -> None:
    """Adds each row of part to a row of total (float32), as `index_add_`.

    Many rows may go to the same place: threads share the columns.
    """
    run(_add_rows_loop, part, total_nd, places.view(-1, 1))
