"""Token rows as a trie: what rows begin with alike goes through the model once.

The rows are laid out flat, each distinct prefix once, so that all that looks at one token at a time
(projections, MLP, norms) runs once a distinct token. Attention looks from a token at its ancestors:
for it the flat tokens are cut into runs, and each run is given the tokens that it may see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import torch
from torch import Tensor

from tallrec.types import IntArray

# Shape letters: n flat tokens, m runs of a block, q and k their queries and keys, s shared keys.

_RUN = 128  # queries in a run at most: of a longer one, half of the scores would be masked
_WIDTH = 32  # own keys of a block are a multiple of it: a softmax is quicker in whole vectors
_BLOCK_SCORES = 1 << 18  # scores of a block and head at most, which bounds memory
_PADDING = 1.3  # a block's padded scores over those it needs, at most
_LEAST_SCORES = 1 << 15  # a block is not worth less, whatever its padding
_SHARING = 6  # so many runs share keys if these are so many times as many as a run's queries


@dataclass(frozen=True)
class Block:
    """Runs of tokens and the tokens they see, for batched products.

    Attributes:
        q_mq: Each run's tokens, padded with 0.
        real_mq: False where a query is padding.
        k_mk: The tokens that this run alone sees, its own last, padded with 0. Here and in
            `shared_s` kept tokens are counted first.
        seen_mq: How many of these, from the first on, a query sees. A padded query sees all.
        shared_s: The tokens that all runs see, in full.
    """

    q_mq: Tensor
    real_mq: Tensor
    k_mk: Tensor
    seen_mq: Tensor
    shared_s: Tensor


@dataclass(frozen=True)
class Tree:
    """Token rows, each distinct prefix once.

    Attributes:
        ids_n: Tokens in depth-first order.
        positions_n: The depth of each.
        blocks: What attends to what; each token is a query in one of them.
        paths: For each row, in the order given, where its tokens are: the first `n_kept` numbers
            are kept tokens, the n-th of `ids_n` is `n_kept + n`.
        n_kept: Tokens that went through the model before, of which keys and values are kept.
    """

    ids_n: Tensor
    positions_n: Tensor
    blocks: list[Block]
    paths: list[IntArray]
    n_kept: int


@dataclass(frozen=True)
class _Run:
    """Queries are the tokens of `path` from `start` on; the first `shared` are seen by a group."""

    path: IntArray
    start: int
    shared: int

    @property
    def n_q(self) -> int:
        return len(self.path) - self.start

    @property
    def n_k(self) -> int:
        return len(self.path) - self.shared


def common_length(one: list[int], other: list[int]) -> int:
    """How many tokens two rows begin with alike."""
    n = min(len(one), len(other))
    if one[:n] == other[:n]:
        return n
    return next(i for i in range(n) if one[i] != other[i])


def build_tree(
    rows: Sequence[list[int]], kept: Sequence[int] = (), *, few_sizes: bool = False
) -> Tree:
    """Lays rows out as a trie.

    Args:
        rows: Token rows, none empty.
        kept: Tokens of which keys and values are kept; the least of the rows begins with them.
        few_sizes: Lets the last row go on, unread, by a sixteenth of the tokens at most, so that
            batches of similar rows have the same number of them. Torch's libraries compile a
            product for each number, and a tensor takes the place of a freed one only if that is as
            large.

    Returns:
        The flat batch: the tokens of the rows that are not kept.
    """
    path = np.arange(len(kept))
    before = list(kept)
    flat: list[int] = []
    paths: list[IntArray] = [path] * len(rows)
    leaves, depths = [path], [len(kept)]  # a leaf's own tokens are those from its depth on
    positions = []
    for i in sorted(range(len(rows)), key=rows.__getitem__):
        row = rows[i]
        depth = common_length(before, row)
        new = len(kept) + len(flat) + np.arange(len(row) - depth)
        path = np.concatenate([path[:depth], new])
        flat += row[depth:]
        positions.append(np.arange(depth, len(row)))
        paths[i] = path
        if depth < len(before):
            leaves.append(path)
            depths.append(depth)
        else:  # the row goes on where the one before it ends
            leaves[-1] = path
        before = row
    step = 1 << max(0, (len(flat) // 16).bit_length() - 1)
    if few_sizes and (left := -len(flat) % step):
        leaves[-1] = np.concatenate([leaves[-1], len(kept) + len(flat) + np.arange(left)])
        positions.append(np.arange(len(before), len(before) + left))
        flat += before[-1:] * left
    runs = list(_runs(leaves, np.array(depths)))
    return Tree(
        torch.tensor(flat),
        torch.from_numpy(np.concatenate(positions)),
        list(_blocks(runs, len(kept))),
        paths,
        len(kept),
    )


def _runs(leaves: list[IntArray], depths: IntArray) -> Iterator[_Run]:
    """Each leaf's own tokens, cut where they are many."""
    shared = _shared_depths(np.array([len(path) for path in leaves]), depths)
    for path, depth, seen in zip(leaves, depths.tolist(), shared.tolist(), strict=True):
        for start in range(depth, len(path), _RUN):
            yield _Run(path[: start + _RUN], start, seen)


def _shared_depths(lengths: IntArray, depths: IntArray) -> IntArray:
    """How much of each leaf's path is seen together with the leaves around it.

    It spares each leaf a copy of those keys, and pays if they outnumber its own tokens by far. The
    first leaf of a group takes no part: the common beginning is its own.
    """
    shared = np.zeros(len(lengths), dtype=int)
    groups = [(0, len(lengths))]
    while groups:
        start, stop = groups.pop()
        if stop - start <= _SHARING:
            continue
        inner = depths[start + 1 : stop]
        depth, done = int(inner.min()), int(shared[start + 1])
        if depth - done >= _SHARING * (lengths - depths)[start + 1 : stop].mean():
            shared[start + 1 : stop] = depth
        cuts = [start, *(np.flatnonzero(inner == depth) + start + 1), stop]
        groups += list(pairwise(cuts))
    return shared


def _blocks(runs: list[_Run], n_kept: int) -> Iterator[Block]:
    """Runs of similar size that share the same tokens."""

    def shared(run: _Run) -> tuple[int, int]:
        return run.shared, int(run.path[run.shared - 1]) if run.shared else 0

    runs = sorted(runs, key=lambda run: (*shared(run), run.n_q, run.n_k), reverse=True)
    for _, group in groupby(runs, key=shared):
        block: list[_Run] = []
        needed = most_k = 0
        for run in group:
            needed, most_k = needed + run.n_q * len(run.path), max(most_k, run.n_k)
            padded = (len(block) + 1) * (block or [run])[0].n_q * (run.shared + most_k)
            too_padded = padded > max(_LEAST_SCORES, _PADDING * needed)
            if block and (too_padded or padded > _BLOCK_SCORES):
                yield _block(block, n_kept)
                block, needed, most_k = [], run.n_q * len(run.path), run.n_k
            block.append(run)
        yield _block(block, n_kept)


def _block(runs: list[_Run], n_kept: int) -> Block:
    n_q, n_k = np.array([run.n_q for run in runs]), np.array([run.n_k for run in runs])
    q_mq = np.zeros((len(runs), n_q.max()), dtype=int)
    k_mk = np.zeros((len(runs), -(-n_k.max() // _WIDTH) * _WIDTH), dtype=int)
    for m, run in enumerate(runs):
        q_mq[m, : n_q[m]] = run.path[run.start :] - n_kept
        k_mk[m, : n_k[m]] = run.path[run.shared :]
    at_q = np.arange(n_q.max())
    real_mq = at_q < n_q[:, None]
    # A run's queries are the last of its keys.
    seen_mq = np.where(real_mq, at_q + (n_k - n_q)[:, None] + 1, k_mk.shape[1])
    arrays = q_mq, real_mq, k_mk, seen_mq, runs[0].path[: runs[0].shared]
    return Block(*map(torch.from_numpy, arrays))


def reading(tree: Tree, read_r: Tensor) -> list[Block]:
    """The blocks with fewer queries, numbered as in `read_r`, flat tokens in ascending order."""
    place_n = torch.full((len(tree.ids_n),), -1)
    place_n[read_r] = torch.arange(len(read_r))
    return [read for block in tree.blocks if (read := _reading(block, place_n))]


def _reading(block: Block, place_n: Tensor) -> Block | None:
    """The block with the queries alone that have a place, and the runs that have such queries."""
    place_mq = place_n[block.q_mq].masked_fill(~block.real_mq, -1)
    most = int((place_mq >= 0).sum(1).max())
    if not most:
        return None
    first_mq = (place_mq < 0).int().argsort(dim=1, stable=True)[:, :most]
    runs = (place_mq >= 0).any(1)
    q_mq, seen_mq = (x.gather(1, first_mq)[runs] for x in (place_mq, block.seen_mq))
    real_mq, k_mk = q_mq >= 0, block.k_mk[runs]
    seen_mq = seen_mq.masked_fill(~real_mq, k_mk.shape[1])
    return Block(q_mq.clamp(min=0), real_mq, k_mk, seen_mq, block.shared_s)
