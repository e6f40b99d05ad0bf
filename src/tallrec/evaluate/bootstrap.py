"""How far a figure can be trusted: the bootstrap over users (Efron, 1979; Field & Welsh, 2007).

Samples of one user resemble each other, so users are drawn, not samples: a resample draws as many
users as there are, with replacement, and takes all samples of a user as often as it was drawn.
All figures of one call share their resamples, which is what makes differences of them *paired*.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tallrec.evaluate.metrics import Statistic
from tallrec.types import FloatArray

N_RESAMPLES = 2000
LEVEL = 0.95

_CHUNK_VALUES = 2_000_000  # weights of samples held at once, 16 MB


@dataclass(frozen=True)
class Interval:
    """A percentile interval.

    Attributes:
        low: Lower end, NaN where no resample defined the figure.
        high: Upper end, NaN likewise.
        dropped: Resamples in which the figure was undefined (such as an AUC without a dislike).
    """

    low: float
    high: float
    dropped: int


def resample_users(
    statistics: Sequence[Statistic],
    n_users: int,
    n_samples: int,
    n: int = N_RESAMPLES,
    seed: int = 0,
) -> FloatArray:
    """Computes every statistic on the same resamples of the users.

    Args:
        statistics: Functions of user weights, from `Metric.by_user_weight`.
        n_users: Number of users, the first axis of the weights.
        n_samples: Number of samples; sets how many resamples are held in memory at once.
        n: Number of resamples.
        seed: Same seed, users and samples: same resamples.

    Returns:
        Values, shape [len(statistics), n]; NaN where a resample leaves a statistic undefined.
    """
    rng = np.random.default_rng(seed)
    values = np.empty((len(statistics), n))
    chunk = max(1, _CHUNK_VALUES // max(n_samples, n_users))
    for start in range(0, n, chunk):
        stop = min(start + chunk, n)
        weights = _draw(rng, n_users, stop - start)
        for row, statistic in zip(values, statistics, strict=True):
            row[start:stop] = statistic(weights)
    return values


def interval(values: FloatArray, level: float = LEVEL) -> Interval:
    """Percentile interval of resampled values, shape [n]; undefined ones are dropped and counted.

    Args:
        values: What a figure came to in each resample.
        level: Share of the resamples inside the interval.
    """
    defined = values[~np.isnan(values)]
    dropped = len(values) - len(defined)
    if not len(defined):
        return Interval(np.nan, np.nan, dropped)
    tail = (1 - level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(float(low), float(high), dropped)


def two_sided_p(differences: FloatArray) -> float:
    """Two-sided bootstrap p-value of "no difference".

    Twice the smaller share of resamples on either side of 0, the observed data counted as one more
    resample (Davison & Hinkley, 1997, section 4.2), so that it is never 0.

    Args:
        differences: Resampled paired differences, shape [n]; NaN are left out.

    Returns:
        The p-value, NaN where no resample is defined.
    """
    defined = differences[~np.isnan(differences)]
    if not len(defined):
        return np.nan
    smaller_side = min(np.sum(defined <= 0), np.sum(defined >= 0))
    return float(min(1.0, 2 * (smaller_side + 1) / (len(defined) + 1)))


def _draw(rng: np.random.Generator, n_users: int, n: int) -> FloatArray:
    """How often each user is drawn in each of n resamples, shape [n_users, n]."""
    drawn = rng.integers(n_users, size=(n, n_users)) * n + np.arange(n)[:, None]
    return np.bincount(drawn.ravel(), minlength=n_users * n).reshape(n_users, n).astype(np.float64)
