"""Histories become samples: each event of a user with enough history before it is one question."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import polars as pl

from tallrec.types import BoolArray, Dataset, IntArray, Sample, Samples, Splits


def build_samples(
    dataset: Dataset,
    *,
    history: int = 10,
    min_history: int | None = None,
    like_above: float = 3.0,
) -> Samples:
    """Turns every event with at least `min_history` events before it into a sample.

    Users come in the order of their first interaction; within a user, events are sorted by
    timestamp, stably (without timestamps the order of the rows counts). This is the sample rule of
    the paper's movie data (TALLRec, section 3.1); there, `history` and `min_history` are 10 and a
    like is a rating above 3.

    Args:
        dataset: Interactions and their catalogue.
        history: The longest history a sample shows, in events; the latest are kept.
        min_history: The shortest history that makes a sample; `history` unless given.
        like_above: A rating above this is a like.

    Returns:
        All samples, grouped by user, oldest first.

    Raises:
        ValueError: If an option is out of range or no user has enough events.
    """
    min_history = history if min_history is None else min_history
    if history < 1 or not 0 <= min_history <= history:
        raise ValueError(
            f"history must be at least 1 and min_history between 0 and history; "
            f"got history={history}, min_history={min_history}"
        )
    events = sort_events(dataset.interactions).with_columns(liked=pl.col("rating") > like_above)
    rows = _rows(events, history, min_history)
    if not rows.height:
        positions = positions_in_group(events["user"])
        longest = int(positions.max()) + 1 if len(positions) else 0
        raise ValueError(
            f"no user has more than {min_history} interactions (the most anyone has is {longest}): "
            f"give a smaller --history or --min-history"
        )
    columns = ["user", "item", "liked", "rating", "timestamp"]
    return Samples(dataset.catalog, events.select(columns), rows)


def full_data(splits: Splits, *, history: int, min_history: int) -> Samples:
    """All that may be known before the validation and test parts are asked about.

    Args:
        splits: The parts of a prepared data set.
        history: The longest history of its samples, in events.
        min_history: The shortest one.

    Returns:
        The training part, and all samples of users who occur in no part: the split `paper` leaves
        most of them out.
    """
    train = splits.train
    in_a_part = np.concatenate([part.users for part in splits.parts().values()])
    rows = _rows(train.events, history, min_history)
    others = np.flatnonzero(~np.isin(replace(train, rows=rows).users, in_a_part))
    return replace(train, rows=pl.concat([train.rows, rows[others]]))


def _rows(events: pl.DataFrame, history: int, min_history: int) -> pl.DataFrame:
    """One row for each event with enough others of its user before it."""
    positions = positions_in_group(events["user"])
    stops = np.flatnonzero(positions >= min_history)
    targets = events[stops]
    return pl.DataFrame(
        {
            "user": targets["user"],
            "start": stops - np.minimum(positions[stops], history),
            "stop": stops,
            "target": targets["item"],
            "liked": targets["liked"],
            "timestamp": targets["timestamp"],
        }
    )


def in_blocks(samples: Samples, block: int) -> Samples:
    """Shows more of each history: all from where the block of events it begins in begins.

    The beginning then moves `block` events at once instead of one, so that what the prompts of a
    user's successive samples begin with stays the same for as many.

    Args:
        samples: Any samples.
        block: How many of a user's events make a block; of 1, nothing changes.

    Returns:
        The same samples, with histories longer by up to `block - 1` events.

    Raises:
        ValueError: If `block` is below 1.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1; got {block}")
    starts, stops = samples.spans.T
    positions = positions_in_group(samples.events["user"])
    shown = starts < stops
    earlier = np.zeros_like(starts)
    earlier[shown] = positions[starts[shown]] % block
    return replace(samples, rows=samples.rows.with_columns(start=pl.Series(starts - earlier)))


def sort_events(interactions: pl.DataFrame) -> pl.DataFrame:
    """Groups interactions by user (order of first appearance), oldest first, ties in file order.

    The paper's code compares timestamps as strings; its file's timestamps all have nine digits, so
    numbers give the same order there and the right one elsewhere.
    """
    users = interactions["user"].to_physical().to_numpy().astype(np.int64)
    first_row = np.full(int(users.max(initial=-1)) + 1, len(users), dtype=np.int64)
    np.minimum.at(first_row, users, np.arange(len(users)))
    rank = np.empty_like(first_row)
    rank[np.argsort(first_row, kind="stable")] = np.arange(len(first_row))
    times = interactions["timestamp"]
    if times.null_count() == len(times):
        order = np.argsort(rank[users], kind="stable")
    else:
        order = np.lexsort((times.fill_null(strategy="min").to_numpy(), rank[users]))
    return interactions[order]


def positions_in_group(groups: pl.Series) -> IntArray:
    """Position of each row within its run of equal values, shape [n]: 0, 1, 2, 0, 1, ..."""
    codes = groups.to_physical().to_numpy()
    starts = np.flatnonzero(np.concatenate(([True], codes[1:] != codes[:-1])))[: len(codes)]
    lengths = np.diff(np.append(starts, len(codes)))
    return np.arange(len(codes)) - np.repeat(starts, lengths)


def samples_for_user(samples: Samples, user: str, items: IntArray, *, history: int = 10) -> Samples:
    """One sample for each of `items`, all with the latest history of `user`.

    Args:
        samples: Any samples of the data set; only their events and catalogue are used.
        user: The user's id.
        items: Item codes (rows of the catalogue) to ask about, shape [n].
        history: The longest history to show, in events.

    Returns:
        `len(items)` samples without labels.

    Raises:
        ValueError: If the user has no events.
    """
    own = np.flatnonzero((samples.events["user"].cast(pl.String) == user).to_numpy())
    if not len(own):
        known = samples.events["user"].cast(pl.String).unique(maintain_order=True)
        raise ValueError(
            f"user {user!r} has no interactions here; users look like "
            f"{', '.join(map(repr, known[:3]))}"
        )
    stop = int(own[-1]) + 1
    start = stop - min(len(own), history)
    targets = samples.catalog["item"][items]
    rows = pl.DataFrame(
        {
            "user": pl.Series([user] * len(items), dtype=samples.events["user"].dtype),
            "start": np.full(len(items), start),
            "stop": np.full(len(items), stop),
            "target": targets.cast(samples.events["item"].dtype),
            "liked": pl.Series([None] * len(items), dtype=pl.Boolean),
            "timestamp": pl.Series([None] * len(items), dtype=pl.Int64),
        }
    )
    return Samples(samples.catalog, samples.events, rows)


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
