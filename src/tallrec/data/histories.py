"""Questions about histories that are no part of a split: a user's own events, or what one says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from tallrec.types import Samples

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
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    stops = np.cumsum(lengths)
    starts = stops - np.minimum(lengths, longest)
    users = pl.Enum([str(i) for i in range(len(histories))])
    ids = pl.Enum(catalog["item"])
    owners = np.arange(len(histories))
    event_table = pl.DataFrame(
        {
            "user": pl.Series(np.repeat(owners, lengths)).cast(pl.String).cast(users),
            "item": pl.Series([item for item, _ in events], dtype=ids),
            "liked": pl.Series([liked for _, liked in events], dtype=pl.Boolean),
            "rating": pl.Series([None] * len(events), dtype=pl.Float32),
            "timestamp": pl.Series([None] * len(events), dtype=pl.Int64),
        }
    )
    n = len(histories) * len(items)
    rows = pl.DataFrame(
        {
            "user": pl.Series(np.repeat(owners, len(items))).cast(pl.String).cast(users),
            "start": np.repeat(starts, len(items)),
            "stop": np.repeat(stops, len(items)),
            "target": pl.Series(list(items) * len(histories), dtype=ids),
            "liked": pl.Series([None] * n, dtype=pl.Boolean),
            "timestamp": pl.Series([None] * n, dtype=pl.Int64),
        }
    )
    return Samples(catalog, event_table, rows)
