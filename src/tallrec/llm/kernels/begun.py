"""What precedes attention in a layer of eight bits: some rows from their norm to their rotation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tallrec.llm.kernels.arithmetic import copy, wide
from tallrec.llm.kernels.finished import SOME_BY_SUMS, Packed, packed_of
from tallrec.llm.kernels.int8 import BYTE
from tallrec.llm.kernels.mixed_products import multiply_all
from tallrec.llm.kernels.mixed_rows import TERM, round_row
from tallrec.llm.kernels.native import FLOAT, LOOP, by_dtype, compiled, rows, run, share
from tallrec.llm.kernels.projected import turn_heads
from tallrec.llm.kernels.whole_layers import normalize


@njit(**LOOP)
def _begin(job: Any, dtype: Any) -> None:
    q, k, v = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, dtype)
    x, norm, epsilon = rows(job, 3, dtype), rows(job, 4, dtype)[0], rows(job, 5, FLOAT)[0, 0]
    weights, bias = packed_of(job, 6), rows(job, 8, dtype)[0]
    cos, sin = rows(job, 9, dtype), rows(job, 10, dtype)
    of_q, of_k, width = q.shape[1], q.shape[1] + k.shape[1], len(bias)
    normed, factors = (
        np.empty((SOME_BY_SUMS, x.shape[1] + TERM), BYTE),
        np.empty(SOME_BY_SUMS, FLOAT),
    )
    sums, buffer = np.empty((SOME_BY_SUMS, width), FLOAT), np.empty(x.shape[1], FLOAT)
    start, stop = share(job[0])
    for first in range(start, stop, SOME_BY_SUMS):
        count = min(SOME_BY_SUMS, stop - first)
        for t in range(count):
            copy(buffer, x[first + t])
            normalize(buffer, norm, epsilon)
            factors[t] = round_row(buffer, normed[t])
        multiply_all(sums[:count], normed[:count], weights, width)
        for t in range(count):
            n, out, factor = first + t, sums[t], factors[t]
            for j in range(len(out)):
                out[j] = out[j] * factor + wide(bias[j])
            turn_heads(q[n], out[:of_q], cos[n], sin[n], FLOAT(1))
            turn_heads(k[n], out[of_q:of_k], cos[n], sin[n], FLOAT(1))
            copy(v[n], out[of_k:])


@compiled
def _begin_loop(job: Any) -> None:
    by_dtype(_begin, job)


def begun(
    x: Tensor,
    norm: tuple[Tensor, float],
    weights: Packed,
    bias_o: Tensor,
    turn: Sequence[Tensor],
    widths: Sequence[int],
) -> list[Tensor]:
    """Queries, keys and values of norm(x).

    Args:
        x: What the layer has read, contiguous.
        norm: Weight and epsilon of the norm.
        weights: Of the three together, of `mixed_products`.
        bias_o: What is added to them, side by side.
        turn: What queries and keys are rotated by: cosines and sines in the same dtype, [n, e].
        widths: Of the three.
    """
    heads = [torch.empty(*x.shape[:-1], width, dtype=x.dtype) for width in widths]
    run(_begin_loop, *heads, x, norm[0], torch.tensor([norm[1]]), *weights, bias_o, *turn)
    return heads
