"""The counts behind an audit, in bitmaps over users, items and pairs of them.

They grow with the number of events, not of history items, and histories are looked at in slices
of bounded size, so that the audit of 20 million rows fits beside its data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tallrec.types import BoolArray, IntArray, Samples

Codes = npt.NDArray[np.uint32]
Numbers = npt.NDArray[np.int32]

_SLICE = 1 << 22  # rows looked at together


@dataclass(frozen=True)
class Pairs:
    """The different pairs of a user and an item among the events, numbered.

    Attributes:
        keys: user code x number of items + item code of each pair, ascending, shape [count].
        of_events: Number of each event's pair, shape [n_events].
        n_items: Number of items.
    """

    keys: IntArray
    of_events: Numbers
    n_items: int

    @classmethod
    def of(cls, events: pl.DataFrame) -> Pairs:
        """Numbers the pairs of an event table."""
        n_items = _kinds(events["item"])
        keys = codes(events["user"]) * np.int64(n_items) + codes(events["item"])
        ordered = np.sort(keys)
        different = ordered[np.diff(ordered, prepend=-1) != 0]
        return cls(different, np.searchsorted(different, keys).astype(np.int32), n_items)

    @property
    def count(self) -> int:
        """How many different pairs there are."""
        return len(self.keys)

    def of_rows(self, rows: pl.DataFrame) -> Numbers:
        """Number of each row's pair of user and target; `count` for one that no event has."""
        keys = codes(rows["user"]) * np.int64(self.n_items) + codes(rows["target"])
        found = np.searchsorted(self.keys, keys)
        found[self.keys[np.minimum(found, self.count - 1)] != keys] = self.count
        return found.astype(np.int32)

    def events_of_rows(self, rows: pl.DataFrame, pairs: Numbers) -> Numbers:
        """Index of the event that each row asks about; the number of events if there is none.

        It is the event behind the row's history if that has the row's pair, else the pair's first.
        """
        n_events = len(self.of_events)
        first = np.full(self.count + 1, n_events, dtype=np.int32)
        first[self.of_events[::-1]] = np.arange(n_events - 1, -1, -1, dtype=np.int32)
        stops = rows["stop"].to_numpy()
        behind = np.minimum(stops, n_events - 1).astype(np.int32)
        asked = (self.of_events[behind] == pairs) & (stops < n_events)
        return np.where(asked, behind, first[pairs])


@dataclass(frozen=True)
class Look:
    """What is found in one part.

    Attributes:
        summary: Its entry in the audit.
        users: True for each user code that has rows.
        items: True for each item code that is a target.
        pairs: Number of each row's pair of user and target, shape [rows].
        events: Index of the event that each row asks about, shape [rows].
        asked: True for each pair that is a row's, shape [pairs + 1].
        shown: True for each event that is in a history, shape [events + 1].
        own_target: Rows whose target is in their own history.
        late_history: History events that are later than their target.
        history: History events of all rows.
    """

    summary: dict[str, Any]
    users: BoolArray
    items: BoolArray
    pairs: Numbers
    events: Numbers
    asked: BoolArray
    shown: BoolArray
    own_target: int
    late_history: int
    history: int


def look_at(part: Samples, pairs: Pairs, times: IntArray | None) -> Look:
    """Counts what is in one part; `times` are the events', None if not all are known."""
    rows = part.rows
    starts, stops = rows["start"].to_numpy(), rows["stop"].to_numpy()
    users = _bitmap(codes(rows["user"]), _kinds(rows["user"]))
    items = _bitmap(codes(rows["target"]), _kinds(rows["target"]))
    own_pairs = pairs.of_rows(rows)
    asked = _bitmap(own_pairs, pairs.count + 1)
    asked[pairs.count] = False  # pairs that no event has are not one pair
    late, own = _faults_in_histories(rows, pairs.of_events, own_pairs, times)
    history = int((stops - starts).sum())
    summary = {
        "rows": rows.height,
        "users": int(users.sum()),
        "items": int(items.sum()),
        "like_share": rows["liked"].mean(),
        "mean_history": history / rows.height if rows.height else None,
    }
    return Look(
        summary=summary,
        users=users,
        items=items,
        pairs=own_pairs,
        events=pairs.events_of_rows(rows, own_pairs),
        asked=asked,
        shown=_covered(starts, stops, part.events.height),
        own_target=own,
        late_history=late,
        history=history,
    )


def _faults_in_histories(
    rows: pl.DataFrame,
    pair_of_event: Numbers,
    targets: Numbers,
    times: IntArray | None,
) -> tuple[int, int]:
    """History events later than their target, and rows whose target is in their own history."""
    late = own = 0
    starts, stops = rows["start"].to_numpy(), rows["stop"].to_numpy()
    longest = int((stops - starts).max(initial=0))
    for first in range(0, rows.height, _SLICE):
        here = slice(first, first + _SLICE)
        start, stop, target = starts[here], stops[here], targets[here]
        moment = None if times is None else rows["timestamp"][here].to_numpy()
        repeated = np.zeros(len(start), dtype=np.bool_)
        for back in range(1, longest + 1):
            event = stop - back
            inside = event >= start
            repeated |= inside & (pair_of_event[event] == target)
            if times is not None:
                late += int(np.count_nonzero(inside & (times[event] > moment)))
        own += int(repeated.sum())
    return late, own


def codes(ids: pl.Series) -> Codes:
    """The codes of an Enum, shape [n]."""
    return ids.to_physical().cast(pl.UInt32).to_numpy()


def _kinds(ids: pl.Series) -> int:
    assert isinstance(ids.dtype, pl.Enum)
    return len(ids.dtype.categories)


def _bitmap(codes: npt.NDArray[Any], size: int) -> BoolArray:
    bits = np.zeros(size, dtype=np.bool_)
    bits[codes] = True
    return bits


def _covered(starts: IntArray, stops: IntArray, n_events: int) -> BoolArray:
    """True for each event that lies in a slice, shape [n_events + 1]."""
    opened = np.bincount(starts, minlength=n_events + 1)
    opened -= np.bincount(stops, minlength=n_events + 1)
    return np.cumsum(opened) > 0
