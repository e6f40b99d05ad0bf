"""The best items of a catalogue for one user."""

from __future__ import annotations

import numpy as np
import polars as pl
from rich.table import Table

from tallrec.data.samples import in_blocks, samples_for_user
from tallrec.types import Samples, Scorer


def recommend(
    scorer: Scorer, samples: Samples, user: str, *, k: int = 10, history: int = 10, block: int = 1
) -> pl.DataFrame:
    """Ranks every item that the user has not met yet.

    Args:
        scorer: Gives log-odds of a like.
        samples: Any samples of the data set; their events are the user's history.
        user: The user's id.
        k: How many items to return.
        history: How many of the user's latest events the scorer sees.
        block: How many events the beginning of that history moves at once; see `in_blocks`.

    Returns:
        At most `k` rows, best first: `item`, `title`, `probability` (of a like).

    Raises:
        ValueError: If the user has no events, or has met every item.
    """
    own = samples.events.filter(pl.col("user").cast(pl.String) == user)
    met = np.zeros(samples.catalog.height, dtype=bool)
    met[own["item"].to_physical().to_numpy()] = True
    candidates = np.flatnonzero(~met)
    if not len(candidates):
        raise ValueError(f"user {user!r} has met all {len(met):,} items; nothing is left")
    questions = samples_for_user(samples, user, candidates, history=history)
    scores = scorer(in_blocks(questions, block))
    best = np.argsort(-scores, kind="stable")[:k]
    return (
        samples.catalog[candidates[best]]
        .select("item", "title")
        .with_columns(probability=pl.Series(1 / (1 + np.exp(-scores[best]))))
    )


def recommendations_table(recommendations: pl.DataFrame, user: str) -> Table:
    """Renders what `recommend` returns for a terminal."""
    table = Table("", "title", "P(like)", title=f"Recommended to user {user}", title_justify="left")
    table.box = None
    for rank, (_, title, probability) in enumerate(recommendations.iter_rows(), start=1):
        table.add_row(str(rank), title, f"{probability:.3f}")
    return table
