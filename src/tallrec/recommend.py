"""The best items for a history, and what in the history moved them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from rich.table import Table

from tallrec.data.histories import History, samples_of_histories
from tallrec.types import FloatArray, Samples, Scorer


def probability(log_odds: FloatArray) -> FloatArray:
    """Probability of a like, shape [n], from its log-odds."""
    return 1 / (1 + np.exp(-log_odds))


def best_items(scorer: Scorer, questions: Samples, *, k: int = 10) -> pl.DataFrame:
    """Ranks the targets of questions about one history.

    Args:
        scorer: Gives log-odds of a like.
        questions: One sample for each candidate.
        k: How many items to return.

    Returns:
        At most `k` rows, best first: `item`, `title`, `log_odds` and `probability` (of a like).
    """
    scores = scorer(questions)
    best = np.argsort(-scores, kind="stable")[:k]
    return (
        questions.catalog[questions.targets[best]]
        .select("item", "title")
        .with_columns(
            log_odds=pl.Series(scores[best]), probability=pl.Series(probability(scores[best]))
        )
    )


def influences(
    scorer: Scorer, catalog: pl.DataFrame, history: History, items: Sequence[str]
) -> pl.DataFrame:
    """How much each item of a history moves the log-odds of others: leave one out.

    All variants of the history are scored in one call, so that a scorer that shares beginnings
    computes what they begin with once.

    Args:
        scorer: Gives log-odds of a like.
        catalog: The items; see `Samples`.
        history: What the scorer shall see, whole.
        items: Ids of the items to explain.

    Returns:
        For each of `items` one row for each of the history, strongest effect first: `target`,
        `item`, `title`, `liked` and `effect`, the target's log-odds less those without that item.

    Raises:
        ValueError: If an id is not in the catalogue.
    """
    variants = [history, *([*history[:i], *history[i + 1 :]] for i in range(len(history)))]
    questions = samples_of_histories(catalog, variants, items, longest=len(history))
    whole, *without = scorer(questions).reshape(len(variants), len(items))
    titles = dict(catalog.select("item", "title").iter_rows())
    effects = [
        (target, item, titles[item], liked, float(whole[j] - without[i][j]))
        for j, target in enumerate(items)
        for i, (item, liked) in enumerate(history)
    ]
    schema = {
        "target": pl.String,
        "item": pl.String,
        "title": pl.String,
        "liked": pl.Boolean,
        "effect": pl.Float64,
    }
    table = pl.DataFrame(effects, schema=schema, orient="row")
    order = pl.col("target").cast(pl.Enum(list(items))).to_physical()
    return table.sort(order, pl.col("effect").abs(), descending=[False, True], maintain_order=True)


def recommendations_table(
    recommendations: pl.DataFrame,
    whom: str,
    effects: pl.DataFrame | None = None,
    *,
    movers: int = 2,
) -> Table:
    """Renders ranked items for a terminal.

    Args:
        recommendations: From `best_items`.
        whom: Whom they are for.
        effects: From `influences`, of the same items.
        movers: How many of the strongest effects to show beside each item.
    """
    columns = ("", "title", "P(like)", *(() if effects is None else ("moved most by",)))
    table = Table(*columns, title=f"Recommended to {whom}", title_justify="left")
    table.box = None
    rows = recommendations.select("item", "title", "probability").iter_rows()
    for rank, (item, title, chance) in enumerate(rows, start=1):
        cells = [str(rank), title, f"{chance:.3f}"]
        if effects is not None:
            strongest = effects.filter(target=item).head(movers).select("title", "effect")
            cells.append(", ".join(f"{name} {effect:+.2f}" for name, effect in strongest.rows()))
        table.add_row(*cells)
    return table
