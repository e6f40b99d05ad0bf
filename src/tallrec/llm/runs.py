"""A `Tree`'s runs as tables, for attention in one pass (`kernels.attend`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tallrec.llm.tree import Block
from tallrec.types import IntArray

# Shape letters: m runs.


@dataclass(frozen=True)
class Runs:
    """Which queries see which keys; all int64.

    Attributes:
        table_m7: Of each run the cost of those before it, where in `queries` its own begin and how
            many they are, the same of its path in `paths`, how many tokens of the path its group
            shares, and the group's number.
        queries: Flat tokens, [1, ..].
        seen: How many tokens of its path a query sees, [1, ..].
        paths: Kept and flat tokens, [1, ..].
        longest: Tokens of the longest path.
        cost: Scores in all.
    """

    table_m7: Tensor
    queries: Tensor
    seen: Tensor
    paths: Tensor
    longest: int
    cost: int


def runs_of(blocks: Sequence[Block]) -> Runs:
    """The runs of blocks, without their padding."""
    queries, seen, paths, counts = [], [], [], []
    for number, block in enumerate(blocks):
        real_mq, shared = block.real_mq.numpy(), len(block.shared_s)
        own_m = np.where(real_mq, block.seen_mq.numpy(), 0).max(1)
        queries.append(block.q_mq.numpy()[real_mq])
        seen.append(block.seen_mq.numpy()[real_mq] + shared)
        shared_ms = np.broadcast_to(block.shared_s.numpy(), (len(own_m), shared))
        path_mp = np.concatenate([shared_ms, block.k_mk.numpy()], axis=1)
        n_m = own_m + shared
        paths.append(path_mp[np.arange(path_mp.shape[1]) < n_m[:, None]])
        ones = np.ones_like(n_m)
        counts.append(np.stack([real_mq.sum(1), n_m, shared * ones, number * ones], axis=1))
    n_q, n_p, shared_m, group = np.concatenate(counts).T
    table = _before(n_q * n_p), _before(n_q), n_q, _before(n_p), n_p, shared_m, group
    return Runs(
        table_m7=torch.from_numpy(np.stack(table, axis=1)),
        queries=_flat(queries),
        seen=_flat(seen),
        paths=_flat(paths),
        longest=int(n_p.max()),
        cost=int((n_q * n_p).sum()),
    )


def _flat(parts: list[IntArray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))[None]


def _before(counts: IntArray) -> IntArray:
    total: IntArray = np.cumsum(counts) - counts
    return total
