"""The words every layer shares: items, samples, splits and scorers. Imports no ML library.

A prepared data set is one table of *events* (grouped by user, oldest first) and, for each part, a
table of *rows*. A row is a sample in the sense of TALLRec (section 2): the history is the slice
``events[start:stop]`` of its user, the target is one more item. Slices keep 20 million samples as
small as their events; `Samples` hides them behind `Sample` objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt
import polars as pl

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

PARTS = ("train", "valid", "test")


class Item(NamedTuple):
    """One item of a catalogue, as a template shows it."""

    id: str
    title: str
    creator: str | None = None


class Instruction(NamedTuple):
    """A task in words, what it is about (often nothing) and the wanted response."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One question: will this user like the target?

    Attributes:
        user: The user's id.
        history: (item, liked) pairs, oldest first.
        target: The item asked about.
        liked: The true answer, or None where it is not known.
    """

    user: str
    history: tuple[tuple[Item, bool], ...]
    target: Item
    liked: bool | None = None


@dataclass(frozen=True)
class Dataset:
    """What a reader returns: every interaction in the order of its file, and the catalogue.

    Attributes:
        name: A short name for reports, such as `movielens-100k`.
        domain: What an item is called in a prompt: `movie`, `book` or another noun.
        interactions: `user` (Enum, categories in order of first appearance), `item` (Enum over
            `catalog["item"]`), `rating` (Float32), `timestamp` (Int64 seconds, null where
            unknown).
        catalog: `item` (String, unique), `title` (String), `creator` (String, null where unknown).
        like_above: A rating above this is a like, unless whoever makes samples says otherwise.
        unrated: The rating of interactions that come without one (implicit feedback), or None
            where all are rated.
    """

    name: str
    domain: str
    interactions: pl.DataFrame
    catalog: pl.DataFrame
    like_above: float = 3.0
    unrated: float | None = None

    def explicit(self) -> Dataset:
        """The data set without its unrated interactions."""
        if self.unrated is None:
            return self
        rated = self.interactions.filter(pl.col("rating") != self.unrated)
        return replace(self, interactions=rated)


@dataclass(frozen=True)
class Samples:
    """A column store of samples that share one event table and one catalogue.

    Attributes:
        catalog: One row an item: `item` (String, unique), `title` (String), `creator` (String,
            null where unknown). An item's code is its row number here.
        events: One row an interaction, grouped by user, oldest first: `user` (Enum), `item` (Enum
            over `catalog["item"]`), `liked` (Boolean), `rating` (Float32, null where unknown),
            `timestamp` (Int64 seconds, null where unknown).
        rows: One row a sample: `user` (Enum), `start` and `stop` (Int64, the history is
            `events[start:stop]`), `target` (Enum over `catalog["item"]`), `liked` (Boolean, null
            where unknown), `timestamp` (Int64, the target event's, null where unknown).
    """

    catalog: pl.DataFrame
    events: pl.DataFrame
    rows: pl.DataFrame

    def __len__(self) -> int:
        return self.rows.height

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | IntArray) -> Samples: ...

    def __getitem__(self, index: int | slice | Sequence[int] | IntArray) -> Sample | Samples:
        if isinstance(index, int | np.integer):
            return self._sample(int(index))
        if isinstance(index, slice):
            return replace(self, rows=self.rows[index])
        return replace(self, rows=self.rows[np.asarray(index, dtype=np.int64)])

    def __iter__(self) -> Iterator[Sample]:
        return (self._sample(i) for i in range(len(self)))

    @cached_property
    def users(self) -> IntArray:
        """User code of each sample, shape [n]; equal codes mean the same user."""
        return self.rows["user"].to_physical().cast(pl.Int64).to_numpy()

    @cached_property
    def targets(self) -> IntArray:
        """Item code (row of the catalogue) of each sample's target, shape [n]."""
        return self.rows["target"].to_physical().cast(pl.Int64).to_numpy()

    @cached_property
    def labels(self) -> BoolArray:
        """True where the user liked the target, shape [n].

        Raises:
            ValueError: If a sample has no label.
        """
        if self.rows["liked"].null_count():
            raise ValueError("these samples have no labels; score them instead of evaluating them")
        return self.rows["liked"].to_numpy()

    @cached_property
    def event_items(self) -> IntArray:
        """Item code of each event, shape [n_events]."""
        return self.events["item"].to_physical().cast(pl.Int64).to_numpy()

    @cached_property
    def event_likes(self) -> BoolArray:
        """True where an event is a like, shape [n_events]."""
        return self.events["liked"].to_numpy()

    @cached_property
    def spans(self) -> IntArray:
        """Start and stop of each sample's history in the events, shape [n, 2]."""
        return self.rows.select("start", "stop").to_numpy()

    @cached_property
    def _items(self) -> list[Item]:
        return [Item(*row) for row in self.catalog.select("item", "title", "creator").iter_rows()]

    def _sample(self, index: int) -> Sample:
        start, stop = self.spans[index]
        history = zip(self.event_items[start:stop], self.event_likes[start:stop], strict=True)
        return Sample(
            user=self.rows["user"][index],
            history=tuple((self._items[code], bool(like)) for code, like in history),
            target=self._items[self.targets[index]],
            liked=self.rows["liked"][index],
        )


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set; `shots` are drawn from `train`."""

    train: Samples
    valid: Samples
    test: Samples

    def parts(self) -> dict[str, Samples]:
        """The parts by name, in order."""
        return {"train": self.train, "valid": self.valid, "test": self.test}


class Scorer(Protocol):
    """Everything that can say how probable a like is: a tuned model, a count, an endpoint."""

    def __call__(self, samples: Samples) -> FloatArray:
        """Returns the log-odds of a like for each sample, shape [n], in the order of the samples.

        NaN says "cannot score this one". A score never depends on the other samples.
        """
        ...
