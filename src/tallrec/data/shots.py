"""The few samples that are tuned on: drawn from the training part, shown in several orders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import polars as pl

from tallrec.data.samples import positions_in_group
from tallrec.types import BoolArray, IntArray, Sample, Samples


def draw_shots(samples: Samples, k: int, *, seed: int, stratify: str = "none") -> Samples:
    """Draws `k` samples without replacement (few-shot setting, TALLRec section 3.1).

    Args:
        samples: The training part.
        k: How many shots.
        seed: Same seed, same data: same shots.
        stratify: `none` draws uniformly; `label` keeps the part's share of likes, as near as `k`
            allows; `user` takes as many different users as possible.

    Returns:
        The shots in the order drawn.

    Raises:
        ValueError: If there are fewer than `k` samples or `stratify` is unknown.
    """
    if not 1 <= k <= len(samples):
        raise ValueError(f"shots must be between 1 and the {len(samples)} training rows; got {k}")
    if stratify not in STRATIFY:
        raise ValueError(f"stratify must be one of {', '.join(STRATIFY)}; got {stratify!r}")
    order = np.random.default_rng(seed).permutation(len(samples))
    return samples[STRATIFY[stratify](samples, order, k)]


def reorder(samples: Iterable[Sample], orders: int, *, seed: int) -> list[Sample]:
    """Shows each labelled sample in several orders of its history and target.

    Every event of a sample has a known answer, so any of them can be the target of the others: the
    same shots ask more questions, and which item came last is not learnt by heart. Nothing but the
    shots' own events is used.

    Args:
        samples: Labelled samples.
        orders: How often each sample is shown; the first time as it is.
        seed: Seeds the orders.

    Returns:
        `orders` times as many samples, pass by pass.
    """
    rng = np.random.default_rng(seed)
    originals = list(samples)
    shown = list(originals)
    for _ in range(orders - 1):
        for sample in originals:
            assert sample.liked is not None
            events = [*sample.history, (sample.target, sample.liked)]
            *history, (target, liked) = (events[i] for i in rng.permutation(len(events)))
            shown.append(replace(sample, history=tuple(history), target=target, liked=liked))
    return shown


def _uniform(_samples: Samples, order: IntArray, k: int) -> IntArray:
    return order[:k]


def _by_label(samples: Samples, order: IntArray, k: int) -> IntArray:
    likes: BoolArray = samples.labels[order]
    n_likes = round(k * float(likes.mean()))
    n_likes = min(max(n_likes, k - int((~likes).sum())), int(likes.sum()))
    chosen = np.concatenate(
        (np.flatnonzero(likes)[:n_likes], np.flatnonzero(~likes)[: k - n_likes])
    )
    return order[np.sort(chosen)]


def _by_user(samples: Samples, order: IntArray, k: int) -> IntArray:
    users = samples.users[order]
    by_user = np.argsort(users, kind="stable")
    turn = np.empty(len(users), dtype=np.int64)  # 0 for a user's first drawn row, 1 for the second
    turn[by_user] = positions_in_group(pl.Series(users[by_user]))
    return order[np.argsort(turn, kind="stable")[:k]]


STRATIFY = {"none": _uniform, "label": _by_label, "user": _by_user}
