"""What precedes attention in a layer of eight bits: some rows from their norm to their rotation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tallrec.llm.kernels.arithmetic import copy, narrow, wide
from tallrec.llm.kernels.byte_rows import Packed, packed_of
from tallrec.llm.kernels.int8 import BYTE
from tallrec.llm.kernels.mixed_products import ROWS, multiply_all
from tallrec.llm.kernels.mixed_rows import TERM, round_row
from tallrec.llm.kernels.native import FLOAT, LOOP, by_dtype, compiled, constant, rows, run, share
from tallrec.llm.kernels.turned import turn_heads
from tallrec.llm.kernels.whole_layers import normalize

SOME = 12 * ROWS  # rows that read a tile of weights; 30 to 90 take as long


class Begins(NamedTuple):
    """How a layer begins.

    Attributes:
        heads: Where queries, keys and values go.
        norm: Weight and epsilon of the norm.
        weights: Of the three together, of `mixed_products`.
        bias_o: What is added to them, side by side; empty if nothing is.
        turn: What queries and keys are rotated by: cosines and sines in the same dtype, [n, e].
    """

    heads: Sequence[Tensor]
    norm: tuple[Tensor, float]
    weights: Packed
    bias_o: Tensor
    turn: Sequence[Tensor]

    def arrays(self) -> tuple[Tensor, ...]:
        """What `beginning_of` reads."""
        weight, epsilon = self.norm
        return *self.heads, weight, constant(epsilon), *self.weights, self.bias_o, *self.turn


_NONE = tuple(torch.empty(shape) for shape in (*3 * [(0, 1)], *7 * [(1, 1)]))


def arrays_of(begins: Begins | None) -> tuple[Tensor, ...]:
    """The arrays of a job; heads have no rows where no layer begins."""
    return begins.arrays() if begins else _NONE


class _Beginning(NamedTuple):
    """`Begins` in a loop."""

    q: Any
    k: Any
    v: Any
    norm: Any
    epsilon: Any
    weights: Any
    bias: Any
    cos: Any
    sin: Any


class _Places(NamedTuple):
    """For some rows: the norm's result rounded, the size of its steps, and what a product gives."""

    buffer: Any
    normed: Any
    factors: Any
    sums: Any


@njit(**LOOP)
def beginning_of(job: Any, at: Any, dtype: Any) -> Any:
    """How a layer begins, of a job's arrays from one on."""
    q, k, v = rows(job, at, dtype), rows(job, at + 1, dtype), rows(job, at + 2, dtype)
    norm, epsilon = rows(job, at + 3, dtype)[0], rows(job, at + 4, FLOAT)[0, 0]
    weights, bias = packed_of(job, at + 5), rows(job, at + 7, dtype)[0]
    cos, sin = rows(job, at + 8, dtype), rows(job, at + 9, dtype)
    return _Beginning(q, k, v, norm, epsilon, weights, bias, cos, sin)


@njit(**LOOP)
def places_of(layer: Any) -> Any:
    """For rows of a layer that begins."""
    d, width = len(layer.norm), layer.q.shape[1] + layer.k.shape[1] + layer.v.shape[1]
    buffer, normed = np.empty(d, FLOAT), np.empty((SOME, d + TERM), BYTE)
    return _Places(buffer, normed, np.empty(SOME, FLOAT), np.empty((SOME, width), FLOAT))


@njit(**LOOP)
def begin(some: Any, layer: Any, x: Any, first: Any, count: Any) -> None:
    """Queries, keys and values of some rows of x from one on."""
    of_q, of_k = layer.q.shape[1], layer.q.shape[1] + layer.k.shape[1]
    for t in range(count):
        copy(some.buffer, x[first + t])
        normalize(some.buffer, layer.norm, layer.epsilon)
        some.factors[t] = round_row(some.buffer, some.normed[t])
    multiply_all(some.sums[:count], some.normed[:count], layer.weights, some.sums.shape[1])
    for t in range(count):
        n, out, factor = first + t, some.sums[t], some.factors[t]
        if len(layer.bias):
            for j in range(len(out)):
                out[j] = out[j] * factor + wide(layer.bias[j])
            factor = FLOAT(1)
        turn_heads(layer.q[n], out[:of_q], layer.cos[n], layer.sin[n], (factor, factor))
        turn_heads(layer.k[n], out[of_q:of_k], layer.cos[n], layer.sin[n], (factor, factor))
        v, out_v = layer.v[n], out[of_k:]
        for j in range(len(v)):
            v[j] = narrow(out_v[j] * factor, v[j])


@njit(**LOOP)
def _begin(job: Any, dtype: Any) -> None:
    x, layer = rows(job, 0, dtype), beginning_of(job, 1, dtype)
    some, (start, stop) = places_of(layer), share(job[0])
    for first in range(start, stop, SOME):
        begin(some, layer, x, first, min(SOME, stop - first))


@compiled
def _begin_loop(job: Any) -> None:
    by_dtype(_begin, job)


def begun(x: Tensor, begins: Begins) -> None:
    """Writes queries, keys and values of norm(x), of what a layer has read, contiguous."""
    run(_begin_loop, x, *begins.arrays())
