"""Counting baselines: what is known without any model, from likes alone.

On data sets of the TALLRec kind most of the pooled AUC says who is generous, so a tuned model that
does not beat these counts has learned nothing about taste. They are fitted on the very shots that
the model is tuned on, histories included, because the model reads those too.
"""

from collections.abc import Callable

import numpy as np
import polars as pl

from tallrec.types import FloatArray, IntArray, Samples, Scorer

# Pseudo-events at the global mean that shrink small counts. Chosen by AUC + GAUC on the validation
# part of the paper's movie data, over 200 draws each of 16, 64 and 256 shots; the optimum is flat.
ITEM_PRIOR_EVENTS = 5.0
HISTORY_PRIOR_EVENTS = 4.0


def like_rate(samples: Samples) -> FloatArray:
    """Scores by the share of likes in the sample's own history; nothing is learned.

    The score is ``log((likes + 1) / (dislikes + 1))``: Laplace's rule as log-odds, 0 for an empty
    history, and increasing in the share of likes where all histories are equally long.

    Args:
        samples: What to score, n of them.

    Returns:
        Log-odds of a like, shape [n].
    """
    return _history_log_odds(samples, mean=0.5, prior_events=2.0)


def fit_item_mean(shots: Samples) -> Scorer:
    """Scores by how well an item is liked in the shots, whoever asks.

    ``logit((likes_i + a * m) / (count_i + a))`` with the global mean m of the shots and
    a = `ITEM_PRIOR_EVENTS`. An item that the shots never mention scores ``logit(m)``.

    Args:
        shots: Labelled samples; their targets and their histories count, an opinion (user, item,
            liked) once, however many samples show it.

    Raises:
        ValueError: If a shot has no label.
    """
    shown = opinions(shots)
    mean = _global_mean(shown)
    a = ITEM_PRIOR_EVENTS
    items = shown.group_by("item").agg(likes=pl.col("liked").sum(), count=pl.len())
    share = (pl.col("likes") + a * mean) / (pl.col("count") + a)
    log_odds = items.select("item", log_odds=(share / (1 - share)).log())

    def score(samples: Samples) -> FloatArray:
        # Joined by id, not by code: the samples may come with another catalogue than the shots.
        by_code = samples.catalog.select("item").join(
            log_odds, on="item", how="left", maintain_order="left"
        )
        return by_code["log_odds"].fill_null(_logit(mean)).to_numpy()[samples.targets]

    return score


def fit_like_rate_item_mean(shots: Samples) -> Scorer:
    """Scores by both counts: the log-odds of the user's history and of the item, added.

    Each part counts as evidence against the global mean m, as in naive Bayes:
    ``history + item - logit(m)``, the history's share of likes shrunk to m by
    `HISTORY_PRIOR_EVENTS`. An unseen item leaves the history's score, an empty history the item's.

    Args:
        shots: Labelled samples, used as in `fit_item_mean`.

    Raises:
        ValueError: If a shot has no label.
    """
    mean = _global_mean(opinions(shots))
    item_mean = fit_item_mean(shots)

    def score(samples: Samples) -> FloatArray:
        history = _history_log_odds(samples, mean, HISTORY_PRIOR_EVENTS)
        return history + item_mean(samples) - _logit(mean)

    return score


def history_counts(samples: Samples) -> tuple[IntArray, IntArray]:
    """Likes and dislikes in each sample's history, two arrays of shape [n]."""
    start, stop = samples.spans.T
    likes_before: IntArray = np.concatenate([[0], np.cumsum(samples.event_likes, dtype=np.int64)])
    likes = likes_before[stop] - likes_before[start]
    return likes, (stop - start) - likes


def opinions(shots: Samples) -> pl.DataFrame:
    """Every distinct (user, item, liked) that the shots show, in a history or as a target."""
    n_events = shots.events.height
    start, stop = shots.spans.T
    opened = np.bincount(start, minlength=n_events + 1) - np.bincount(stop, minlength=n_events + 1)
    in_a_history = pl.Series(np.cumsum(opened)[:-1] > 0)
    targets = shots.rows.with_columns(item="target", liked=pl.Series(shots.labels))
    columns = ("user", pl.col("item").cast(pl.String), "liked")
    return pl.concat(
        [shots.events.filter(in_a_history).select(columns), targets.select(columns)]
    ).unique()


COUNTING_BASELINES: dict[str, Callable[[Samples], Scorer]] = {
    "like-rate": lambda _shots: like_rate,
    "item mean": fit_item_mean,
    "like-rate + item mean": fit_like_rate_item_mean,
}
"""Name to fitting function, all of one signature: labelled shots in, a `Scorer` out."""


def _history_log_odds(samples: Samples, mean: float, prior_events: float) -> FloatArray:
    """Log-odds of the history's share of likes, shrunk to `mean`, shape [n]."""
    likes, dislikes = history_counts(samples)
    odds: FloatArray = (likes + prior_events * mean) / (dislikes + prior_events * (1 - mean))
    return np.log(odds)


def _global_mean(shown: pl.DataFrame) -> float:
    """Share of likes by Laplace's rule, so that it is never 0 or 1, and 0.5 without any opinion."""
    return (int(shown["liked"].sum()) + 1) / (shown.height + 2)


def _logit(p: float) -> float:
    return float(np.log(p / (1 - p)))
