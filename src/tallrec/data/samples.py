"""Histories become samples: each event of a user with enough history before it is one question."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from tallrec.types import Dataset, IntArray, Samples, Splits


def build_samples(
    dataset: Dataset,
    *,
    history: int = 10,
    min_history: int | None = None,
    like_above: float | None = None,
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
        like_above: A rating above this is a like; the data set's own border unless given.

    Returns:
        All samples, grouped by user, oldest first.

    Raises:
        ValueError: If an option is out of range or no user has enough events.
    """
    min_history = history if min_history is None else min_history
    events = sort_events(dataset.interactions)
    return _samples_of(dataset, events, history, min_history, like_above)


def random_targets(
    dataset: Dataset,
    *,
    history: int = 10,
    min_history: int = 3,
    like_above: float | None = None,
    seed: int = 0,
) -> Samples:
    """Turns one random event of each user into a sample, with random others as its history.

    This is the sample rule of the paper's book data, which has no times (TALLRec, section 3.1):
    users with more than 3 ratings, a random one as target, at most 10 of the others as history, in
    random order. Each user is shuffled with draws of their own and whole events are: the released
    code shuffles lists of items and of labels apart, in place and from one seed, so that its labels
    fit other items, and users with as many events get the same order.

    Args:
        dataset: Interactions and their catalogue; timestamps are not looked at.
        history: The longest history a sample shows, in events.
        min_history: A user needs more events than this.
        like_above: A rating above this is a like; the data set's own border unless given.
        seed: Seeds the order of each user's events.

    Returns:
        One sample for each user with enough events; the user's events are in their new order, the
        target last.

    Raises:
        ValueError: If an option is out of range or no user has enough events.
    """
    grouped = sort_events(dataset.interactions)
    (rng,) = np.random.default_rng(seed).spawn(1)  # not the draws that `split_users` makes of it
    starts = positions_in_group(grouped["user"]) == 0
    events = grouped[np.lexsort((rng.random(len(grouped)), np.cumsum(starts)))]
    return _samples_of(dataset, events, history, min_history, like_above, last_only=True)


def _samples_of(
    dataset: Dataset,
    events: pl.DataFrame,
    history: int,
    min_history: int,
    like_above: float | None,
    *,
    last_only: bool = False,
) -> Samples:
    """Makes events that are grouped by user, or the last of each user, targets of those before."""
    if history < 1 or not 0 <= min_history <= history:
        raise ValueError(
            f"history must be at least 1 and min_history between 0 and history; "
            f"got history={history}, min_history={min_history}"
        )
    positions = positions_in_group(events["user"])
    stops = np.flatnonzero(positions >= min_history)
    if not len(stops):
        longest = int(positions.max()) + 1 if len(positions) else 0
        raise ValueError(
            f"no user has more than {min_history} interactions (the most anyone has is {longest}): "
            f"give a smaller --history or --min-history"
        )
    if last_only:
        stops = stops[np.append(positions[1:] == 0, True)[stops]]
    border = dataset.like_above if like_above is None else like_above
    events = events.with_columns(liked=pl.col("rating") > border)
    columns = ["user", "item", "liked", "rating", "timestamp"]
    return Samples(
        dataset.catalog, events.select(columns), _rows(events, positions, stops, history)
    )


def full_data(splits: Splits, asked: Samples, *, history: int, min_history: int) -> Samples:
    """All that may be known before samples are asked about.

    Args:
        splits: The parts of a prepared data set.
        asked: One of its parts, or samples of another prepared folder.
        history: The longest history of its samples, in events.
        min_history: The shortest one.

    Returns:
        The training part, and all samples of users who occur neither in a part nor in `asked`: the
        split `paper` leaves most of them out.
    """
    train = splits.train
    in_a_part = np.concatenate([part.users for part in splits.parts().values()])
    positions = positions_in_group(train.events["user"])
    rows = _rows(train.events, positions, np.flatnonzero(positions >= min_history), history)
    others = rows.filter(pl.Series(~np.isin(replace(train, rows=rows).users, in_a_part)))
    names = asked.rows["user"].cast(pl.String).unique().implode()
    others = others.filter(~pl.col("user").cast(pl.String).is_in(names))
    return replace(train, rows=pl.concat([train.rows, others]))


def _rows(events: pl.DataFrame, positions: IntArray, stops: IntArray, history: int) -> pl.DataFrame:
    """The rows of samples whose targets are the events at `stops`."""
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


def with_histories(samples: Samples, longest: int) -> Samples:
    """Shows more of each history, or less.

    Args:
        samples: Any samples.
        longest: How many of the events before the target to show, the latest of all the user has.

    Returns:
        The same samples with other histories; a sample that shows none still shows none.

    Raises:
        ValueError: If `longest` is below 1.
    """
    if longest < 1:
        raise ValueError(f"a history must be at least 1 event long; got {longest}")
    return _showing(samples, np.minimum(_known_to_the_end(samples), longest))


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
    lengths = stops - starts
    return _showing(samples, lengths + (_known_to_the_end(samples) - lengths) % block)


def _known_to_the_end(samples: Samples) -> IntArray:
    """How many events each user has up to the end of the history; 0 where it shows none."""
    starts, stops = samples.spans.T
    shown = starts < stops
    known: IntArray = np.zeros_like(stops)
    known[shown] = positions_in_group(samples.events["user"])[stops[shown] - 1] + 1
    return known


def _showing(samples: Samples, lengths: IntArray) -> Samples:
    """The same samples with histories of other lengths."""
    stops = samples.spans[:, 1]
    return replace(samples, rows=samples.rows.with_columns(start=pl.Series(stops - lengths)))


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
