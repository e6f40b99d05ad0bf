"""The gradients of attention of runs of tokens over their ancestors, in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tallrec.llm.kernels.arithmetic import LOG2_E, exp2, narrow
from tallrec.llm.kernels.native import (
    FLOAT,
    INT,
    LONG,
    LOOP,
    PART,
    compiled,
    fetch_ahead,
    kept,
    lent,
    rows,
    run,
    share,
    thread,
    threads,
)
from tallrec.llm.kernels.tiles import COLUMNS, ROWS, in_floats, multiply, transpose, up
from tallrec.llm.kernels.tree_rows import (
    COST,
    FIRST_P,
    FIRST_Q,
    GROUP,
    N_P,
    N_Q,
    SHARED,
    TAKEN,
    ahead,
    hold_columns,
    hold_rows,
    locate,
    put,
    some_rows,
    take,
    tree_arrays,
    tree_of,
    weigh,
)
from tallrec.llm.kernels.vectors import LANES
from tallrec.llm.kernels.words import as_column, as_rows, by_floats, by_words, per_word

if TYPE_CHECKING:
    from tallrec.llm.runs import Runs

# Shape letters as in `tallrec.llm.kernels.tree_rows`.

_CHUNK = 16 * ROWS  # rows of queries after which their part of the keys' gradients is added


class _Held(NamedTuple):
    """Keys and values of a path as words, and the gradients of both, in float32."""

    keys_dp: Any
    values_dp: Any
    keys_pd: Any
    d_keys_dp: Any
    d_values_dp: Any


class _Chunk(NamedTuple):
    """Words of some rows' queries, gradients, weights and slopes of scores; q of these rows."""

    queries_dq: Any
    grads_dq: Any
    weights_qp: Any
    slopes_qp: Any


@njit(**PART)
def _held(width: Any, longest: Any, per: Any, word: Any) -> Any:
    """Places for them; per numbers are a word."""
    keys, values = np.zeros((width // per, longest), word), np.zeros((width // per, longest), word)
    by_key = np.zeros((longest // per, up(width, COLUMNS)), word)
    d_keys, d_values = np.zeros((2, up(width, LANES), longest), FLOAT)
    return _Held(keys, values, by_key, d_keys, d_values)


@njit(**PART)
def _chunk(width: Any, longest: Any, per: Any, word: Any) -> Any:
    """Places for them; per numbers are a word."""
    words = _CHUNK // per
    queries, grads = np.zeros((width, words), word), np.zeros((width, words), word)
    weights, slopes = np.zeros((words, longest), word), np.zeros((words, longest), word)
    return _Chunk(queries, grads, weights, slopes)


@njit(**LOOP)
def _differentiate(weights: Any, slopes: Any, n: Any, base: Any, scaling: Any) -> None:
    """Turns scores into weights, and gradients of these into those of scores; 0 behind n."""
    drift, factor = FLOAT(0), scaling * LOG2_E
    for j in range(len(weights)):
        p = exp2(weights[j] * factor - base)
        p = p if INT(j) < n else FLOAT(0)
        weights[j] = p
        drift += p * (slopes[j] if INT(j) < n else FLOAT(0))
    for j in range(len(weights)):
        slope = weights[j] * (slopes[j] - drift) * scaling
        slopes[j] = slope if INT(j) < n else FLOAT(0)


@njit(**LOOP)
def _slopes(some: Any, grads: Any, here: Any, which: Any, held: Any, arrays: Any) -> Any:
    """Weights and slopes of some rows' scores, and the gradients of their queries.

    Returns:
        How many weights of a row are computed, of which those that are not seen are 0.
    """
    (first, n), (q, d_out, bases, dq, scaling) = which, arrays
    per = per_word(held.keys_dp[0, 0])
    most = locate(some, here, first, n)
    seen = up(most, COLUMNS)
    take(some.queries, q, some.at[:n])
    take(grads.queries, d_out, some.at[:n])
    ahead(q, d_out, here, first)
    multiply(some.queries, held.keys_dp, some.scores, n, seen, q.shape[1] // per, False)
    multiply(grads.queries, held.values_dp, grads.scores, n, seen, q.shape[1] // per, False)
    for r in range(n):
        slopes, narrow_slopes = grads.scores[r, :seen], grads.weights[r]
        base = bases[some.at[r], 0] if some.at[r] >= 0 else FLOAT(0)
        _differentiate(some.scores[r, :seen], slopes, some.seen[r], base, scaling)
        for j in range(len(slopes)):
            narrow_slopes[j] = narrow(slopes[j], narrow_slopes[j])
    weigh(grads.weights, held.keys_pd, some.sums, n, up(most, per) // per)
    for r in range(n):
        put(dq, some.at[r], some.sums[r], FLOAT(1))
    return seen


@njit(**LOOP)
def _run_slopes(some: Any, grads: Any, here: Any, held: Any, chunk: Any, arrays: Any) -> None:
    """The gradients of a run's queries, and, added to what is held, of its keys and values."""
    (tree, one, _), q = here, arrays[0]
    per_group, per = tree.n_heads // tree.n_groups, per_word(held.keys_dp[0, 0])
    width, like = q.shape[1], some.weights[0]
    n_rows = one[N_Q] * per_group
    for first in range(0, n_rows, _CHUNK):
        stop = min(n_rows, first + _CHUNK)
        most = up(tree.seen[one[FIRST_Q] + (stop - 1) // per_group], COLUMNS)
        for row in range(first, stop, TAKEN):
            n = min(TAKEN, up(stop - row, ROWS))
            seen = _slopes(some, grads, here, (row, n), held, arrays)
            some.scores[:n, seen:most], grads.scores[:n, seen:most] = FLOAT(0), FLOAT(0)
            for r in range(0, n, per):
                at, other = (row - first + r) // per, r + per - 1
                as_column(chunk.queries_dq, at, some.queries[r], some.queries[other])
                as_column(chunk.grads_dq, at, grads.queries[r], grads.queries[other])
            as_rows(chunk.weights_qp, row - first, some.scores[:n], most, like)
            as_rows(chunk.slopes_qp, row - first, grads.scores[:n], most, like)
        steps = up(stop - first, ROWS) // per
        multiply(chunk.grads_dq, chunk.weights_qp, held.d_values_dp, width, most, steps, True)
        multiply(chunk.queries_dq, chunk.slopes_qp, held.d_keys_dp, width, most, steps, True)


@njit(**PART)
def _add_columns(to: Any, x_dp: Any, path: Any, first: Any, stop: Any, copy: Any) -> None:
    """Adds columns of sums to rows, and sets them to 0."""
    some_pd = np.empty((LANES, len(x_dp)), FLOAT)
    for column in range(first // LANES * LANES, stop, LANES):
        begin, end = max(first, column), min(stop, column + LANES)
        for p in range(begin, end):
            fetch_ahead(to, copy + path[p])
        transpose(x_dp, column, some_pd)
        for p in range(begin, end):
            to_d, x_d = to[copy + path[p]], some_pd[p - column]
            for j in range(len(to_d)):
                to_d[j] += x_d[j]
    x_dp[:, first:stop] = FLOAT(0)


@njit(**PART)
def _settle(held: Any, path: Any, first: Any, stop: Any, dk: Any, dv: Any, copy: Any) -> None:
    """Adds gradients of a part of a path to the sums, and sets them to 0."""
    _add_columns(dk, held.d_keys_dp, path, first, stop, copy)
    _add_columns(dv, held.d_values_dp, path, first, stop, copy)


@njit(**LOOP)
def _attend_backward(job: Any, dtype: Any, inside: Any, word: Any) -> None:
    q, k, v = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, dtype)
    d_out, bases, dq = rows(job, 3, dtype), rows(job, 4, FLOAT), rows(job, 5, dtype)
    dk, dv, scaling = rows(job, 6, FLOAT), rows(job, 7, FLOAT), rows(job, 8, FLOAT)[0, 0]
    arrays = q, d_out, bases, dq, scaling
    tree, width = tree_of(job, 9), q.shape[1]
    some, grads = some_rows(width, tree.longest, inside), some_rows(width, tree.longest, inside)
    per = per_word(word(0))
    held, chunk = _held(width, tree.longest, per, word), _chunk(width, tree.longest, per, word)
    own = some, grads, held, chunk
    _all_slopes(lent(own), tree, (k, v, dk, dv), arrays)  # type: ignore[call-arg]
    kept(own)


@njit(**LOOP)
def _all_slopes(own: Any, tree: Any, of_keys: Any, arrays: Any) -> None:
    """The gradients of the runs of a thread."""
    (some, grads, held, chunk), (k, v, dk, dv) = own, of_keys
    before, shared, copy, path = LONG(-1), LONG(0), LONG(0), tree.paths[:0]
    start, stop = share(tree.cost * tree.n_groups)
    for g in range(tree.n_groups):
        for one in tree.runs:
            if start <= g * tree.cost + one[COST] < stop:
                first, group = shared, one[GROUP] * tree.n_groups + g
                if group != before:
                    _settle(held, path, LONG(0), shared, dk, dv, copy)
                    first, shared, before = LONG(0), one[SHARED], group
                # Threads that have the same head of keys add to sums of their own.
                copy = (thread() - g * threads() // tree.n_groups) * len(k)
                path = tree.paths[one[FIRST_P] : one[FIRST_P] + one[N_P]] * tree.n_groups + g
                hold_columns(held.keys_dp, k, path, first)
                hold_columns(held.values_dp, v, path, first)
                hold_rows(held.keys_pd, k, path, first)
                _run_slopes(some, grads, (tree, one, g), held, chunk, arrays)
                _settle(held, path, shared, one[N_P], dk, dv, copy)
    _settle(held, path, LONG(0), shared, dk, dv, copy)


@compiled
def _attend_backward_loop(job: Any) -> None:
    by_words(_attend_backward, job)


@compiled
def _attend_backward_loop_in_floats(job: Any) -> None:
    by_floats(_attend_backward, job)


def attend_backward(
    grad_nhd: Tensor,
    q_nhd: Tensor,
    k_cgd: Tensor,
    v_cgd: Tensor,
    bases_nh: Tensor,
    runs: Runs,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values; the latter in float32. See `attend`."""
    h, g, of = q_nhd.shape[1], k_cgd.shape[1], torch.get_num_threads()
    copies = min(of, -(-of // g) + 1)  # as many threads at most have the same head of keys
    dq, (dk, dv) = torch.empty_like(q_nhd), (torch.zeros(copies, *x.shape) for x in (k_cgd, v_cgd))
    arrays = q_nhd, k_cgd, v_cgd, grad_nhd, bases_nh.view(-1, 1), dq, dk, dv
    floats = in_floats(q_nhd.dtype)
    loop = _attend_backward_loop_in_floats if floats else _attend_backward_loop
    run(loop, *arrays, *tree_arrays(runs, h, g, scaling))
    return dq, dk.sum(0), dv.sum(0)
