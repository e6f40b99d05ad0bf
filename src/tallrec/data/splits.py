"""Samples become train, valid and test parts, each rule a plain function."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from tallrec.types import IntArray, Samples, Splits


def split_paper(samples: Samples, *, sizes: tuple[int, int, int] = (8000, 1000, 1000)) -> Splits:
    """The split of the paper's released movie data: the last 10,000 samples in user-grouped order.

    It is by user order, not by time, and its parts share users only where a border cuts one; the
    movie test part holds 1,000 rows of 16 users.

    Args:
        samples: Samples grouped by user.
        sizes: Rows of train, valid and test.

    Raises:
        ValueError: If there are too few samples.
    """
    total = sum(sizes)
    if len(samples) < total:
        raise ValueError(
            f"the paper split takes the last {total:,} samples, but there are {len(samples):,}: "
            f"use the split 'users' or 'time'"
        )
    first = len(samples) - total
    borders = first + np.cumsum((0, *sizes))
    train, valid, test = (samples[int(a) : int(b)] for a, b in pairwise(borders))
    return Splits(train, valid, test)


def split_users(
    samples: Samples, *, seed: int = 0, shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
) -> Splits:
    """Splits by user: no user occurs in two parts (the new-user setting of few-shot tuning).

    Args:
        samples: Any samples.
        seed: Shuffles the users.
        shares: Share of the users in train, valid and test.

    Raises:
        ValueError: If there are fewer than three users or a share is not positive.
    """
    users, places = np.unique(samples.users, return_inverse=True)
    return by_part(samples, parts_of_users(len(users), seed=seed, shares=shares)[places])


def parts_of_users(
    n: int, *, seed: int = 0, shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
) -> IntArray:
    """The part of each user who has samples, in order of first appearance, shape [n]: 0, 1 or 2.

    Args:
        n: How many users there are.
        seed: Shuffles them.
        shares: Share of the users in train, valid and test.

    Raises:
        ValueError: If there are fewer than three users or a share is not positive.
    """
    _check_shares(shares)
    if n < 3:
        raise ValueError(f"the split 'users' needs at least 3 users with samples; got {n}")
    users = np.arange(n)
    np.random.default_rng(seed).shuffle(users)
    last = np.clip(round(n * (shares[0] + shares[1])), 2, n - 1)
    first = np.clip(round(n * shares[0]), 1, last - 1)
    part = np.zeros(n, dtype=np.int64)
    part[users[first:last]] = 1
    part[users[last:]] = 2
    return part


def split_time(samples: Samples, *, shares: tuple[float, float, float] = (0.8, 0.1, 0.1)) -> Splits:
    """Cuts at two moments in time: every target of a later part is later than all of the earlier.

    Args:
        samples: Samples whose targets all have timestamps.
        shares: Share of the samples in train, valid and test; rows of the same second stay
            together, so that the parts' sizes are near these.

    Raises:
        ValueError: If timestamps are missing or too few different ones exist for three parts.
    """
    times = times_of(samples)
    values, counts = np.unique(times, return_counts=True)
    return by_part(samples, parts_in_time(times, cuts_in_time(values, counts, shares)))


def times_of(samples: Samples) -> IntArray:
    """The timestamp of each sample's target, shape [n].

    Raises:
        ValueError: If one has none.
    """
    times = samples.rows["timestamp"]
    if times.null_count():
        raise ValueError(
            f"the split 'time' needs a timestamp on every interaction; {times.null_count():,} of "
            f"{len(times):,} samples have none: give --timestamp, or use the split 'users'"
        )
    return times.to_numpy()


def cuts_in_time(
    values: IntArray,
    counts: IntArray,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> tuple[int, int]:
    """The moments at which the parts valid and test begin.

    Args:
        values: The different timestamps of all samples, in order, shape [m].
        counts: How many samples have each, shape [m].
        shares: Share of the samples in train, valid and test.

    Raises:
        ValueError: If too few different ones exist for three parts, or a share is not positive.
    """
    _check_shares(shares)
    upto = np.cumsum(counts)
    n = int(upto[-1])
    places = [min(int(n * share), n - 1) for share in (shares[0], shares[0] + shares[1])]
    valid_from, test_from = (
        int(values[np.searchsorted(upto, place, side="right")]) for place in places
    )
    if not values[0] < valid_from < test_from:
        raise ValueError(
            "the split 'time' needs interactions at three or more moments; too many of these "
            "share one timestamp: use the split 'users'"
        )
    return valid_from, test_from


def parts_in_time(times: IntArray, cuts: tuple[int, int]) -> IntArray:
    """The part of each timestamp, shape [n]; see `cuts_in_time`."""
    valid_from, test_from = cuts
    return (times >= valid_from).astype(np.int64) + (times >= test_from)


def by_part(samples: Samples, part: IntArray) -> Splits:
    """Samples by the part of each, shape [n]: 0 for train, 1 for valid, 2 for test."""
    train, valid, test = (samples[np.flatnonzero(part == p)] for p in range(3))
    return Splits(train, valid, test)


def _check_shares(shares: tuple[float, float, float]) -> None:
    if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares must be three positive numbers that sum to 1; got {shares}")


SPLITS: dict[str, Callable[..., Splits]] = {
    "paper": split_paper,
    "users": split_users,
    "time": split_time,
}
