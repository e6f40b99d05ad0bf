"""Attention of runs of tokens over their ancestors in one pass.

As Dao et al. (2022, FlashAttention): scores live in a core's cache. Up to 16 rows of queries (a
token's heads that have the same keys, then the next token's) are taken at a time, which look no
further than the last of them sees; only the first four of them wait for what they look at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tallrec.llm.kernels.arithmetic import LOG2_E
from tallrec.llm.kernels.exponentials import exponentials
from tallrec.llm.kernels.native import (
    FLOAT,
    LONG,
    LOOP,
    compiled,
    kept,
    lent,
    rows,
    run,
    share,
)
from tallrec.llm.kernels.tiles import COLUMNS, ROWS, in_floats, in_tiles, up
from tallrec.llm.kernels.tree_rows import (
    COST,
    FIRST_P,
    N_P,
    N_Q,
    TAKEN,
    ahead,
    common,
    hold_columns,
    hold_rows,
    locate,
    put,
    score,
    some_rows,
    take,
    tree_arrays,
    tree_of,
    weigh,
)
from tallrec.llm.kernels.vectors import LANES
from tallrec.llm.kernels.words import by_floats, by_words, per_word

if TYPE_CHECKING:
    from tallrec.llm.runs import Runs

# Shape letters as in `tallrec.llm.kernels.tree_rows`.


@njit(**LOOP)
def _attend_run(some: Any, here: Any, held: Any, arrays: Any) -> None:
    """Attention of those of a run's queries that have the same head of keys."""
    (tree, one, _), (keys, values), (q, out, bases, scaling) = here, held, arrays
    per, inverses = per_word(keys[0, 0]), np.empty(TAKEN, FLOAT)
    scores, weights, factor = some.scores, some.weights, scaling * LOG2_E
    n_rows = one[N_Q] * (tree.n_heads // tree.n_groups)
    for first in range(0, n_rows, TAKEN):
        n = min(TAKEN, up(n_rows - first, ROWS))
        most = locate(some, here, first, n)
        take(some.queries, q, some.at[:n])
        ahead(q, out, here, first)
        score(some.queries, keys, some.scores, (n, most, q.shape[1] // per))
        for r in range(0, n, ROWS):
            of_rows = scores.ctypes.data + r * scores.strides[0]
            to = weights.ctypes.data + r * weights.strides[0]
            places = of_rows, scores.strides[0], to, weights.strides[0], up(most, LANES)
            seen = some.seen[r], some.seen[r + 1], some.seen[r + 2], some.seen[r + 3]
            found: Any = exponentials(weights[0, 0], places, seen, factor)  # type: ignore[call-arg]
            totals, taken_off = found
            for p in range(ROWS):
                inverses[r + p] = FLOAT(1) / totals[p]
                if len(bases) and some.at[r + p] >= 0:
                    bases[some.at[r + p], 0] = taken_off[p] + np.log2(totals[p])
        weigh(some.weights, values, some.sums, n, up(most, per) // per)
        for r in range(n):
            put(out, some.at[r], some.sums[r], inverses[r])


@njit(**LOOP)
def _attend(job: Any, dtype: Any, inside: Any, word: Any) -> None:
    q, k, v = rows(job, 0, dtype), rows(job, 1, dtype), rows(job, 2, dtype)
    arrays = q, rows(job, 3, dtype), rows(job, 4, FLOAT), rows(job, 5, FLOAT)[0, 0]
    tree, width = tree_of(job, 6), q.shape[1]
    some, per = some_rows(width, tree.longest, inside), per_word(word(0))
    keys = np.zeros((width // per, tree.longest), word)
    values = np.zeros((tree.longest // per, up(width, COLUMNS)), word)
    own = some, keys, values
    _attend_runs(lent(own), tree, (k, v), arrays)  # type: ignore[call-arg]
    kept(own)


@njit(**LOOP)
def _attend_runs(own: Any, tree: Any, of_keys: Any, arrays: Any) -> None:
    """Attention of the runs of a thread."""
    (some, keys, values), (k, v) = own, of_keys
    before, (start, stop) = tree.paths[:0] * LONG(1), share(tree.cost * tree.n_groups)
    for g in range(tree.n_groups):
        for one in tree.runs:
            if start <= g * tree.cost + one[COST] < stop:
                path = tree.paths[one[FIRST_P] : one[FIRST_P] + one[N_P]] * tree.n_groups + g
                first, before = common(before, path), path
                hold_columns(keys, k, path, first)
                hold_rows(values, v, path, first)
                _attend_run(some, (tree, one, g), (keys, values), arrays)


@compiled
def _attend_loop(job: Any) -> None:
    by_words(_attend, job)


@compiled
def _attend_loop_in_floats(job: Any) -> None:
    by_floats(_attend, job)


def attends(q_nhd: Tensor) -> bool:
    """Whether `attend` is for queries of this kind."""
    return in_tiles(q_nhd.dtype) and q_nhd.shape[-1] % ROWS == 0


def attend(
    q_nhd: Tensor, k_cgd: Tensor, v_cgd: Tensor, runs: Runs, scaling: float, *, keeps: bool = True
) -> tuple[Tensor, Tensor]:
    """softmax(scaling Q K') V of every query over the keys that its run lets it see.

    Args:
        q_nhd: Queries, contiguous, as the others; d is a multiple of 4.
        k_cgd: Keys of g heads, each for h / g heads of queries.
        v_cgd: Values.
        runs: Which sees what.
        scaling: A positive factor of all scores.
        keeps: Whether gradients will be wanted.

    Returns:
        out_nhd, and if so what `attend_backward` needs of each row, float32 [n, h]: the logarithm
        of the sum of its exponentials, to base 2.
    """
    (n, h, _), g = q_nhd.shape, k_cgd.shape[1]
    out, bases = torch.empty(q_nhd.shape, dtype=q_nhd.dtype), torch.empty(n if keeps else 0, h)
    loop = _attend_loop_in_floats if in_floats(q_nhd.dtype) else _attend_loop
    run(loop, q_nhd, k_cgd, v_cgd, out, bases.view(-1, 1), *tree_arrays(runs, h, g, scaling))
    return out, bases
