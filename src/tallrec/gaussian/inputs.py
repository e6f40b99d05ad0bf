"""What a Gaussian process over opinions reads: who, when, which item, and what that item is."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import polars as pl

from tallrec.types import BoolArray, FloatArray, IntArray, Samples


@dataclass(frozen=True)
class Items:
    """Facts about items, one row each.

    Attributes:
        codes: Equal codes mean the same item, shape [n].
        creators: Equal codes mean the same creator, -1 an unknown one, shape [n].
        years: Decades since 1990, NaN where unknown, shape [n].
        popularity: log(1 + opinions of the shots about it by other users), shape [n].
        vectors: What the backbone knows of its title, shape [n, d].
    """

    codes: IntArray
    creators: IntArray
    years: FloatArray
    popularity: FloatArray
    vectors: FloatArray

    def __getitem__(self, index: IntArray) -> Self:
        return type(self)(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


@dataclass(frozen=True)
class Opinions:
    """Who says something about which item, and after how many events.

    Attributes:
        users: Equal codes mean the same user, shape [n].
        positions: Place among the events of the user, shape [n].
        items: The items, one row an opinion.
    """

    users: IntArray
    positions: FloatArray
    items: Items

    def __getitem__(self, index: IntArray) -> Opinions:
        return Opinions(self.users[index], self.positions[index], self.items[index])


@dataclass(frozen=True)
class Shown:
    """The distinct opinions that shots show, in a history or as a target.

    Attributes:
        users: User codes, shape [n].
        positions: Place in the table of events, shape [n].
        items: Rows of the catalogue, shape [n].
        liked: The answers, shape [n].
    """

    users: IntArray
    positions: FloatArray
    items: IntArray
    liked: BoolArray


def shown_in(shots: Samples) -> Shown:
    """The opinions of labelled shots.

    Raises:
        ValueError: If a shot has no label.
    """
    users = shots.events["user"].to_physical().cast(pl.Int64).to_numpy()
    ranges = [np.arange(*span) for span in shots.spans]
    rows = np.unique(np.concatenate(ranges)).astype(np.int64)
    histories = {
        "users": users[rows],
        "positions": rows.astype(np.float64),
        "items": shots.event_items[rows],
        "liked": shots.event_likes[rows],
    }
    targets = {
        "users": shots.users,
        "positions": shots.spans[:, 1].astype(np.float64),
        "items": shots.targets,
        "liked": shots.labels,
    }
    table = pl.concat([pl.DataFrame(histories), pl.DataFrame(targets)])
    once = table.unique(["users", "items"], keep="first", maintain_order=True)
    return Shown(**{name: once[name].to_numpy() for name in once.columns})


def opinions_of_others(shown: Shown, items: Items) -> Opinions:
    """The shots' opinions, none of which counts itself as a sign that its item is popular.

    Many people see what many people like, so how often an item occurs says something. But every
    item that the shots show occurs once for that reason alone.

    Args:
        shown: The opinions.
        items: The items of their catalogue, with all opinions counted.
    """
    own = items[shown.items]
    others = np.log1p(np.maximum(np.expm1(own.popularity) - 1, 0))
    return Opinions(shown.users, shown.positions, replace(own, popularity=others))
