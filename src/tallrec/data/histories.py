"""Questions about histories that are no part of a split: a user's own events, or what one says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from tallrec.types import IntArray, Sample, Samples

History = Sequence[tuple[str, bool]]
"""(item id, liked) pairs, oldest first."""


def history_of(samples: Samples, user: str) -> list[tuple[str, bool]]:
    """All events of a user, oldest first.

    Args:
        samples: Any samples of the data set; only their events are used.
        user: The user's id.

    Raises:
        ValueError: If the user has no events.
    """
    own = samples.events.filter(pl.col("user").cast(pl.String) == user)
    if own.is_empty():
        raise ValueError(unknown_user(samples, user))
    return list(own.select(pl.col("item").cast(pl.String), "liked").iter_rows())


def unknown_user(samples: Samples, user: str) -> str:
    """What to tell of a user who has no events."""
    known = samples.events["user"].cast(pl.String).unique(maintain_order=True)
    return (
        f"user {user!r} has no interactions here; users look like {', '.join(map(repr, known[:3]))}"
    )


def check_items(catalog: pl.DataFrame, ids: Sequence[str]) -> None:
    """Refuses ids that are not in a catalogue.

    Raises:
        ValueError: If there is one; it is named.
    """
    known = pl.Series(list(ids), dtype=pl.String).is_in(catalog["item"].implode())
    if not known.all():
        unknown = next(item for item, is_known in zip(ids, known, strict=True) if not is_known)
        raise ValueError(
            f"there is no item {unknown!r} in the catalogue; items look like "
            f"{', '.join(map(repr, catalog['item'][:3]))}"
        )


def samples_of_histories(
    catalog: pl.DataFrame, histories: Sequence[History], items: Sequence[str], *, longest: int
) -> Samples:
    """Asks about every item after every history.

    Args:
        catalog: The items; see `Samples`.
        histories: Whole histories; each is a user's of its own.
        items: Ids to ask about.
        longest: How many of a history's latest events a sample shows.

    Returns:
        `len(histories) * len(items)` samples without labels, history by history.

    Raises:
        ValueError: If an id is not in the catalogue.
    """
    events = [event for history in histories for event in history]
    check_items(catalog, [*(item for item, _ in events), *items])
    return _samples(
        catalog,
        np.array([len(history) for history in histories], dtype=np.int64),
        pl.Series([item for item, _ in events], dtype=pl.String),
        pl.Series([liked for _, liked in events], dtype=pl.Boolean),
        owners=np.repeat(np.arange(len(histories)), len(items)),
        targets=pl.Series(list(items) * len(histories), dtype=pl.String),
        longest=longest,
    )


def samples_of_table(catalog: pl.DataFrame, table: pl.DataFrame, *, longest: int) -> Samples:
    """Asks about one item after one history for each row of a table.

    Args:
        catalog: The items; see `Samples`.
        table: `item` (String) and `history` (a list of structs of `item` and `liked`, oldest first;
            null or empty for none).
        longest: How many of a history's latest events a sample shows.

    Returns:
        One sample without label for each row.

    Raises:
        ValueError: If an id is not in the catalogue, or an item is in its own history.
    """
    lengths = table["history"].list.len().fill_null(0).cast(pl.Int64).to_numpy()
    events = table.filter(pl.Series(lengths > 0))["history"].explode().struct.unnest()
    owners = np.arange(table.height)
    check_items(catalog, [*events["item"], *table["item"]])
    asked = table["item"].gather(np.repeat(owners, lengths))
    if (known := asked.filter(events["item"] == asked)).len():
        raise ValueError(f"item {known[0]!r} is asked about and in its history: it is answered")
    return _samples(
        catalog,
        lengths,
        events["item"],
        events["liked"],
        owners=owners,
        targets=table["item"],
        longest=longest,
    )


def samples_of_pairs(samples: Samples, pairs: pl.DataFrame, *, longest: int) -> Samples:
    """Asks about pairs of a user and an item of a data set.

    The history is what the user met before that item: all events where the user never met it. So
    a pair of the data gets the history, and the score, that it has in its part.

    Args:
        samples: Any samples of the data set; only their events and catalogue are used.
        pairs: `user` and `item` (String).
        longest: How many of a history's latest events a sample shows.

    Returns:
        One sample without label for each pair.

    Raises:
        ValueError: If a user has no events or an item is not in the catalogue.
    """
    events = samples.events.select("user", "item", at=pl.int_range(pl.len(), dtype=pl.Int64))
    check_items(samples.catalog, pairs["item"].to_list())
    pairs = pairs.select(
        "user",
        known=pl.col("user").cast(events["user"].dtype, strict=False),
        item=pl.col("item").cast(events["item"].dtype),
    )
    own = events.join(pairs, left_on="user", right_on="known", how="semi")
    bounds = own.group_by("user").agg(start=pl.col("at").min(), stop=pl.col("at").max() + 1)
    met = own.group_by("user", "item").agg(met=pl.col("at").min())
    asked = pairs.join(
        bounds, left_on="known", right_on="user", how="left", maintain_order="left"
    ).join(
        met, left_on=["known", "item"], right_on=["user", "item"], how="left", maintain_order="left"
    )
    if asked["stop"].null_count():
        raise ValueError(unknown_user(samples, asked.filter(pl.col("stop").is_null())["user"][0]))
    stop = pl.coalesce("met", "stop")
    rows = asked.select(
        user="known",
        start=pl.max_horizontal("start", stop - longest),
        stop=stop,
        target="item",
        liked=pl.lit(None, pl.Boolean),
        timestamp=pl.lit(None, pl.Int64),
    )
    return Samples(samples.catalog, samples.events, rows)


def samples_of_questions(
    catalog: pl.DataFrame, questions: Sequence[Sample], *, longest: int
) -> Samples:
    """Puts single questions into one table; items that the catalogue lacks are added to it.

    Args:
        catalog: The items; see `Samples`.
        questions: What to ask. A history that several of them share is stored once.
        longest: How many of a history's latest events a sample shows.

    Returns:
        One sample without label for each question. Its catalogue is the one given, if that has all
        items.
    """
    histories = {id(question.history): question.history for question in questions}
    places = {history: place for place, history in enumerate(histories)}
    events = [event for history in histories.values() for event in history]
    ids = set(catalog["item"])
    asked = [item for item, _ in events] + [question.target for question in questions]
    new = dict.fromkeys(item for item in asked if item.id not in ids)
    names = {item: f"\x00{n}" for n, item in enumerate(new)}  # no id of a catalogue is such
    if new:
        rows = [(names[item], item.title, item.creator) for item in new]
        schema = {"item": pl.String, "title": pl.String, "creator": pl.String}
        added = pl.DataFrame(rows, schema=schema, orient="row")
        catalog = pl.concat([catalog.select(*schema), added])
    items = pl.Series([names.get(item, item.id) for item in asked], dtype=pl.String)
    return _samples(
        catalog,
        np.array([len(history) for history in histories.values()], dtype=np.int64),
        items[: len(events)],
        pl.Series([liked for _, liked in events], dtype=pl.Boolean),
        owners=np.array([places[id(question.history)] for question in questions], dtype=np.int64),
        targets=items[len(events) :],
        longest=longest,
    )


def _samples(
    catalog: pl.DataFrame,
    lengths: IntArray,
    items: pl.Series,
    likes: pl.Series,
    *,
    owners: IntArray,
    targets: pl.Series,
    longest: int,
) -> Samples:
    """Samples of histories that stand one after the other in `items` and `likes`.

    Row i shows the latest of the history `owners[i]` and asks about `targets[i]`.
    """
    stops = np.cumsum(lengths)
    starts = stops - np.minimum(lengths, longest)
    users = pl.Enum([str(i) for i in range(len(lengths))])
    ids = pl.Enum(catalog["item"])
    events = pl.DataFrame(
        {
            "user": pl.Series(np.repeat(np.arange(len(lengths)), lengths)).cast(pl.String),
            "item": items.cast(ids),
            "liked": likes,
        }
    ).with_columns(
        pl.col("user").cast(users),
        rating=pl.lit(None, pl.Float32),
        timestamp=pl.lit(None, pl.Int64),
    )
    rows = pl.DataFrame(
        {
            "user": pl.Series(owners).cast(pl.String),
            "start": starts[owners],
            "stop": stops[owners],
            "target": targets.cast(ids),
        }
    ).with_columns(
        pl.col("user").cast(users),
        liked=pl.lit(None, pl.Boolean),
        timestamp=pl.lit(None, pl.Int64),
    )
    return Samples(catalog, events, rows)
