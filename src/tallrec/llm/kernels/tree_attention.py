"""Attention of runs of tokens over their ancestors in one pass.

As Dao et al. (2022, FlashAttention): scores live in a core's cache. Up to 16 rows of queries (a
token's heads that have the same keys, then the next token's) are taken at a time, which look no
further than the last of them sees; only the first four of them wait for what they look at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

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
    PART,
    compiled,
    copy,
    exp2,
    fetch_ahead,
    kept,
    lent,
    narrow,
    of_order,
    order,
    rows,
    run,
    share,
)
from tallrec.llm.kernels.tiles import (
    COLUMNS,
    LANES,
    ROWS,
    as_row,
    by_floats,
    by_words,
    in_floats,
    in_tiles,
    multiply,
    per_word,
    up,
    word_of,
)

if TYPE_CHECKING:
    from tallrec.llm.runs import Runs

# Shape letters: n queries, c keys, h heads, g heads of keys, d width of a head, p tokens of a path.

COST, FIRST_Q, N_Q, FIRST_P, N_P, SHARED, GROUP = range(7)  # columns of a table of runs
TAKEN = 4 * ROWS  # rows of queries at a time, at most
_AHEAD = 8  # rows of keys and values that are asked for before they are read
_LEAST = INT(-0x7FFFFFFF)


class TreeJob(NamedTuple):
    """What attends to what: arrays of `Runs`, and numbers of heads, of keys' and of a path."""

    runs: Any
    paths: Any
    queries: Any
    seen: Any
    n_heads: Any
    n_groups: Any
    longest: Any
    cost: Any


@njit(**PART)
def tree_of(job: Any, first: Any) -> Any:
    """The tree of a job, whose arrays start with a number."""
    runs, paths = rows(job, first, LONG), rows(job, first + 1, LONG)[0]
    queries, seen = rows(job, first + 2, LONG)[0], rows(job, first + 3, LONG)[0]
    n_heads, n_groups, longest, cost = rows(job, first + 4, LONG)[0]
    return TreeJob(runs, paths, queries, seen, n_heads, n_groups, up(longest, COLUMNS), cost)


class SomeRows(NamedTuple):
    """Some rows of queries: which of all they are, how many keys they see, and what is theirs."""

    at: Any
    seen: Any
    queries: Any
    scores: Any
    weights: Any
    sums: Any


@njit(**PART)
def some_rows(width: Any, longest: Any, dtype: Any) -> Any:
    """Places for them; the dtype is that of numbers in words."""
    at, seen, queries = (
        np.zeros(TAKEN, LONG),
        np.zeros(TAKEN, LONG),
        np.zeros((TAKEN, width), dtype),
    )
    scores, weights = np.zeros((TAKEN, longest), FLOAT), np.zeros((TAKEN, longest), dtype)
    sums = np.zeros((TAKEN, up(width, COLUMNS)), FLOAT)
    return SomeRows(at, seen, queries, scores, weights, sums)


@njit(**PART)
def row_of(here: Any, number: Any) -> Any:
    """Which row of all queries one of a run is, and how many keys it sees.

    Behind the run's last it is none (-1) and sees nothing.
    """
    tree, one, g = here
    per_group = tree.n_heads // tree.n_groups
    token, head = number // per_group, number % per_group
    if token >= one[N_Q]:
        return LONG(-1), LONG(0)
    place = one[FIRST_Q] + token
    return tree.queries[place] * tree.n_heads + g * per_group + head, tree.seen[place]


@njit(**PART)
def locate(some: Any, here: Any, first: Any, n: Any) -> Any:
    """Finds n rows of a run.

    Returns:
        How many keys are seen at most.
    """
    most = LONG(0)
    for r in range(n):
        some.at[r], some.seen[r] = row_of(here, first + r)
        most = max(most, some.seen[r])
    return most


@njit(**PART)
def ahead(one: Any, other: Any, here: Any, first: Any) -> None:
    """Asks for the next rows, of queries and of an array of their shape."""
    for r in range(TAKEN):
        at, _ = row_of(here, first + TAKEN + r)
        fetch_ahead(one, at)
        fetch_ahead(other, at)


@njit(**PART)
def take(out: Any, x: Any, at: Any) -> None:
    """Some rows, 0 where there is none."""
    for r in range(len(at)):
        out_d = out[r]
        if at[r] >= 0:
            copy(out_d, x[at[r]])
        else:
            out_d[:] = 0


@njit(**PART)
def put(out: Any, at: Any, x_d: Any, factor: Any) -> None:
    """A row of float32 times a factor, unless it is none."""
    if at >= 0:
        out_d = out[at]
        for j in range(len(out_d)):
            out_d[j] = narrow(x_d[j] * factor, out_d[j])


@njit(**PART)
def hold_columns(out: Any, x: Any, path: Any, first: Any) -> None:
    """Rows of a path, from the first on, as columns of words: [d, p]."""
    per = per_word(out[0, 0])
    for p in range(first, len(path)):
        fetch_ahead(x, path[min(p + _AHEAD, len(path) - 1)])
        row = x[path[p]]
        for w in range(len(out)):
            out[w, p] = word_of(row[w * per], row[w * per + per - 1], out[w, p])


@njit(**PART)
def hold_rows(out: Any, x: Any, path: Any, first: Any) -> None:
    """Rows of a path, from the first on, as rows of words: [p, d]."""
    per, none = per_word(out[0, 0]), np.zeros_like(x[0])
    for w in range(first // per, up(len(path), per) // per):
        for p in range(per):
            fetch_ahead(x, path[min(w * per + p + _AHEAD, len(path) - 1)])
        last = w * per + per - 1
        as_row(out[w], x[path[w * per]], x[path[last]] if last < len(path) else none)


@njit(**PART)
def weigh(weights: Any, rows_pd: Any, sums: Any, n: Any, words: Any) -> None:
    """Sums of rows times the weights of n rows; a part of them for all, then the next."""
    per = per_word(rows_pd[0, 0])
    for w in range(0, words, COLUMNS):
        part, steps = weights[:, w * per :], min(COLUMNS, words - w)
        multiply(part, rows_pd[w:], sums, n, sums.shape[1], steps, w > 0)


@njit(**LOOP)
def _exponentials(scores: Any, n: Any, factor: Any) -> Any:
    """2^(factor (score - the largest)) of the first n, 0 behind; 1 / their sum, its logarithm."""
    most = _LEAST
    for j in range(len(scores)):
        key = order(scores[j])
        key = key if INT(j) < n else _LEAST
        most = key if key > most else most
    top, total = of_order(most), FLOAT(0)
    for j in range(len(scores)):
        exp = exp2((scores[j] - top) * factor)
        exp = exp if INT(j) < n else FLOAT(0)
        scores[j] = exp
        total += exp
    return FLOAT(1) / total, top * factor + np.log2(total)


@njit(**LOOP)
def _attend_run(some: Any, here: Any, held: Any, arrays: Any) -> None:
    """Attention of those of a run's queries that have the same head of keys."""
    (tree, one, _), (keys, values), (q, out, bases, scaling) = here, held, arrays
    per, inverses = per_word(keys[0, 0]), np.empty(TAKEN, FLOAT)
    n_rows = one[N_Q] * (tree.n_heads // tree.n_groups)
    for first in range(0, n_rows, TAKEN):
        n = min(TAKEN, up(n_rows - first, ROWS))
        most = locate(some, here, first, n)
        take(some.queries, q, some.at[:n])
        ahead(q, out, here, first)
        multiply(some.queries, keys, some.scores, n, most, q.shape[1] // per, False)
        for r in range(n):
            scores, weights = some.scores[r, : up(most, LANES)], some.weights[r]
            inverses[r], base = _exponentials(scores, some.seen[r], scaling * LOG2_E)
            if some.at[r] >= 0:
                bases[some.at[r], 0] = base
            for j in range(len(scores)):
                weights[j] = narrow(scores[j], weights[j])
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
    before, (start, stop) = LONG(-1), share(tree.cost * tree.n_groups)
    for g in range(tree.n_groups):
        for one in tree.runs:
            if start <= g * tree.cost + one[COST] < stop:
                path = tree.paths[one[FIRST_P] : one[FIRST_P] + one[N_P]] * tree.n_groups + g
                group = one[GROUP] * tree.n_groups + g
                first, before = one[SHARED] if group == before else LONG(0), group
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
    q_nhd: Tensor, k_cgd: Tensor, v_cgd: Tensor, runs: Runs, scaling: float
) -> tuple[Tensor, Tensor]:
    """softmax(scaling Q K') V of every query over the keys that its run lets it see.

    Args:
        q_nhd: Queries, contiguous, as the others; d is a multiple of 4.
        k_cgd: Keys of g heads, each for h / g heads of queries.
        v_cgd: Values.
        runs: Which sees what.
        scaling: A positive factor of all scores.

    Returns:
        out_nhd, and what `attend_backward` needs of each row, float32 [n, h]: the logarithm of the
        sum of its exponentials, to base 2.
    """
    (n, h, _), g = q_nhd.shape, k_cgd.shape[1]
    out, bases = torch.empty(q_nhd.shape, dtype=q_nhd.dtype), torch.empty(n, h)
    loop = _attend_loop_in_floats if in_floats(q_nhd.dtype) else _attend_loop
    run(loop, q_nhd, k_cgd, v_cgd, out, bases.view(-1, 1), *tree_arrays(runs, h, g, scaling))
    return out, bases


def tree_arrays(runs: Runs, h: int, g: int, scaling: float) -> tuple[Tensor, ...]:
    """What `tree_of` reads, and before it the factor of scores."""
    sizes = torch.tensor([[h, g, runs.longest, runs.cost]])
    arrays = runs.table_m7, runs.paths, runs.queries, runs.seen, sizes
    return torch.tensor([[scaling]]), *arrays
