"""What runs of tokens and their ancestors are to a compiled loop: some rows, and a path's keys.

Up to 16 rows of queries (a token's heads that have the same keys, then the next token's) are taken
at a time; keys and values of a path are held as words, once for all runs that share them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tallrec.llm.kernels.arithmetic import copy, narrow
from tallrec.llm.kernels.native import FLOAT, LONG, PART, fetch_ahead, rows
from tallrec.llm.kernels.tiles import COLUMNS, TALL, multiply, multiply_column, transpose, up
from tallrec.llm.kernels.vectors import IS_LONG, LANES
from tallrec.llm.kernels.words import as_row, per_word, word_of

if TYPE_CHECKING:
    from tallrec.llm.runs import Runs

# Shape letters: n queries, c keys, h heads, g heads of keys, d width of a head, p tokens of a path.

COST, FIRST_Q, N_Q, FIRST_P, N_P, SHARED, GROUP = range(7)  # columns of a table of runs
TAKEN = TALL  # rows of queries at a time, at most
_PART = 64  # rows of words that are summed for all before the next are
_AHEAD = 8  # rows of keys and values that are asked for before they are read


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
def _row_of(here: Any, token: Any, head: Any, per_group: Any) -> Any:
    """Which row of all queries one of a run is, and how many keys it sees.

    Behind the run's last it is none (-1) and sees nothing.
    """
    tree, one, g = here
    if token >= one[N_Q]:
        return LONG(-1), LONG(0)
    place = one[FIRST_Q] + token
    return tree.queries[place] * tree.n_heads + g * per_group + head, tree.seen[place]


@njit(**PART)
def _after(token: Any, head: Any, per_group: Any) -> Any:
    """The next row's token and head, which divisions would take longer to find."""
    return (token, head + 1) if head + 1 < per_group else (token + 1, LONG(0))


@njit(**PART)
def locate(some: Any, here: Any, first: Any, n: Any) -> Any:
    """Finds n rows of a run.

    Returns:
        How many keys are seen at most.
    """
    tree, _, _ = here
    most, per_group = LONG(0), tree.n_heads // tree.n_groups
    token, head = first // per_group, first % per_group
    for r in range(n):
        some.at[r], some.seen[r] = _row_of(here, token, head, per_group)
        most = max(most, some.seen[r])
        token, head = _after(token, head, per_group)
    return most


@njit(**PART)
def ahead(one: Any, other: Any, here: Any, first: Any) -> None:
    """Asks for the next rows, of queries and of an array of their shape."""
    tree, _, _ = here
    per_group = tree.n_heads // tree.n_groups
    token, head = (first + TAKEN) // per_group, (first + TAKEN) % per_group
    for _ in range(TAKEN):
        at, _ = _row_of(here, token, head, per_group)
        fetch_ahead(one, at)
        fetch_ahead(other, at)
        token, head = _after(token, head, per_group)


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
def common(one: Any, other: Any) -> Any:
    """How many keys two paths begin with alike."""
    n = min(len(one), len(other))
    for p in range(n):
        if one[p] != other[p]:
            return LONG(p)
    return LONG(n)


@njit(**PART)
def score(queries: Any, keys: Any, scores: Any, shape: Any) -> None:
    """Products of n rows of queries and the first keys, up to whole vectors.

    Args:
        queries: Of `TAKEN` rows.
        keys: In columns of words.
        scores: float32, `TAKEN` rows.
        shape: n, keys, and words of a query.
    """
    n, most, steps = shape
    whole = most // COLUMNS * COLUMNS
    left = up(most - whole, LANES)
    if n < TAKEN or left + LANES > COLUMNS or not IS_LONG:
        multiply(queries, keys, scores, n, most, steps, False)
        return
    multiply(queries, keys, scores, n, whole, steps, False)
    for first in range(whole, whole + left, LANES):
        multiply_column(queries, keys[:, first:], scores[:, first:], steps)


@njit(**PART)
def hold_columns(out: Any, x: Any, path: Any, first: Any) -> None:
    """Rows of a path, from the first on, as columns of words, [d, p]: by squares, turned."""
    per, last = per_word(out[0, 0]), len(path) - 1
    whole, some = len(out) // LANES * LANES, np.zeros((LANES, len(out)), out.dtype)
    for p in range(first // LANES * LANES, len(path), LANES):
        n = min(LANES, len(path) - p)
        for r in range(n):
            fetch_ahead(x, path[min(p + r + _AHEAD, last)])
            words, row = some[r], x[path[p + r]]
            for w in range(len(words)):
                words[w] = word_of(row[w * per], row[w * per + per - 1], words[w])
        for w in range(0, whole, LANES):
            transpose(some, w, out[w:, p:])
        for w in range(whole, len(out)):
            for r in range(n):
                out[w, p + r] = some[r, w]


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
    for w in range(0, words, _PART):
        part, steps = weights[:, w * per :], min(_PART, words - w)
        multiply(part, rows_pd[w:], sums, n, sums.shape[1], steps, w > 0)


def tree_arrays(runs: Runs, h: int, g: int, scaling: float) -> tuple[Tensor, ...]:
    """What `tree_of` reads, and before it the factor of scores."""
    sizes = torch.tensor([[h, g, runs.longest, runs.cost]])
    arrays = runs.table_m7, runs.paths, runs.queries, runs.seen, sizes
    return torch.tensor([[scaling]]), *arrays
