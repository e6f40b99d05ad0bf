"""How good scores are: ranking over everyone, ranking within users, and calibration.

Every metric has one implementation, which weighs users: weight 1 for all is the metric itself, the
number of times that each user was drawn is one bootstrap resample (`tallrec.evaluate.bootstrap`).

A score of NaN says "could not be scored". Such samples are left out of every metric; counting them
is the caller's part (`tallrec.evaluate.report` states their number).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tallrec.types import BoolArray, FloatArray, IntArray

CALIBRATION_BINS = 10

Statistic = Callable[[FloatArray], FloatArray]
"""User weights, shape [n_users, n_resamples], to values, shape [n_resamples]; NaN is undefined."""


@dataclass(frozen=True)
class Metric:
    """A metric; call it with (labels, scores, users) for its value.

    Attributes:
        title: Its name in a table.
        statistic: From (labels, scores, users) of the scored samples, users coded 0, 1, ... with
            none left out, to a function of user weights. Whatever does not depend on the weights
            is computed only once.
    """

    title: str
    statistic: Callable[[BoolArray, FloatArray, IntArray], Statistic]

    def __call__(self, labels: npt.ArrayLike, scores: npt.ArrayLike, users: npt.ArrayLike) -> float:
        """Computes the metric, each sample counted once.

        Args:
            labels: True where the user liked the target, shape [n].
            scores: Log-odds of a like, shape [n]; NaN where a sample could not be scored.
            users: Equal codes mean the same user, shape [n].

        Returns:
            The value, NaN where it is undefined (such as the AUC of likes only).
        """
        names, codes = np.unique(np.asarray(users), return_inverse=True)
        value = self.by_user_weight(
            np.asarray(labels, dtype=np.bool_), np.asarray(scores, dtype=np.float64), codes
        )
        return float(value(np.ones((len(names), 1)))[0])

    def by_user_weight(self, labels: BoolArray, scores: FloatArray, users: IntArray) -> Statistic:
        """Prepares the metric for many weightings of the users.

        Args:
            labels: As in a call.
            scores: As in a call.
            users: Row of each sample's user in the weights, shape [n].
        """
        scored = ~np.isnan(scores)
        present, codes = np.unique(users[scored], return_inverse=True)
        value = self.statistic(labels[scored], scores[scored], codes)
        return lambda weights: value(weights[present])


def auc(labels: BoolArray, scores: FloatArray, users: IntArray) -> Statistic:
    """Pooled AUC: the chance that a random like scores above a random dislike, ties by half.

    Both may come from any user, so a user who likes everything helps as much as one whose taste
    is understood. With weights, a pair counts by the product of its two weights.
    """
    order = np.argsort(scores[~labels])
    below = scores[~labels][order]
    like_users, dislike_users = users[labels], users[~labels][order]
    first = np.searchsorted(below, scores[labels], side="left")
    last = np.searchsorted(below, scores[labels], side="right")

    def value(weights: FloatArray) -> FloatArray:
        likes = weights[like_users]
        dislikes = np.zeros((len(below) + 1, weights.shape[1]))
        np.cumsum(weights[dislike_users], axis=0, out=dislikes[1:])
        wins = np.einsum("ir,ir->r", likes, dislikes[first] + dislikes[last]) / 2
        return _ratio(wins, likes.sum(axis=0) * dislikes[-1])

    return value


def gauc(labels: BoolArray, scores: FloatArray, users: IntArray) -> Statistic:
    """AUC within each user, averaged by the users' numbers of samples.

    Users with likes only or dislikes only have no AUC and are left out, as in Deep Interest Network
    (Zhou et al., KDD 2018, equation 7). How generous a user is cancels out; what is left is taste.
    """
    count = np.bincount(users)
    n_likes = np.bincount(users, labels)
    # Mann-Whitney per user: the ranks of the likes among the user's own samples, less their least.
    ranks = _ranks_within(users, scores)
    wins = np.bincount(users, ranks * labels) - n_likes * (n_likes + 1) / 2
    pairs = n_likes * (count - n_likes)
    size = np.where(pairs > 0, count, 0)
    return _weighted_mean(size * _ratio(wins, pairs, undefined=0.0), size)


def log_loss(labels: BoolArray, scores: FloatArray, users: IntArray) -> Statistic:
    """Mean negative log-likelihood (nats) of the labels under ``sigmoid(score)``."""
    return _mean_of(np.logaddexp(0, np.where(labels, -scores, scores)), users)


def brier(labels: BoolArray, scores: FloatArray, users: IntArray) -> Statistic:
    """Mean squared error of ``sigmoid(score)`` as the probability of a like (Brier, 1950)."""
    return _mean_of((sigmoid(scores) - labels) ** 2, users)


def ece(labels: BoolArray, scores: FloatArray, users: IntArray) -> Statistic:
    """Expected calibration error of ``sigmoid(score)`` in 10 bins of equal width.

    ``sum over bins of (samples in the bin / n) * |share of likes - mean probability|`` (Naeini et
    al., AAAI 2015, for the probability of a like). Noise only adds to it, so that resamples lie
    higher than the estimate: read its interval as an upper bound.
    """
    probability = sigmoid(scores)
    count = np.bincount(users)
    cell = calibration_bin(probability) * len(count) + users
    gap = np.bincount(cell, labels - probability, minlength=CALIBRATION_BINS * len(count))
    gap_by_bin = gap.reshape(CALIBRATION_BINS, len(count))

    def value(weights: FloatArray) -> FloatArray:
        gaps = np.einsum("bu,ur->br", gap_by_bin, weights)
        return _ratio(np.abs(gaps).sum(axis=0), _weighted_sum(count, weights))

    return value


METRICS: dict[str, Metric] = {
    "auc": Metric("AUC", auc),
    "gauc": Metric("GAUC", gauc),
    "log_loss": Metric("log-loss", log_loss),
    "brier": Metric("Brier", brier),
    "ece": Metric("ECE", ece),
}


def sigmoid(scores: FloatArray) -> FloatArray:
    """Probability of a like for log-odds, without overflow at either end."""
    return 0.5 * (1 + np.tanh(scores / 2))


def calibration_bin(probability: FloatArray) -> IntArray:
    """The bin of each probability; the last one includes 1."""
    bins = (probability * CALIBRATION_BINS).astype(np.int64)
    return np.minimum(bins, CALIBRATION_BINS - 1)


def _mean_of(loss: FloatArray, users: IntArray) -> Statistic:
    total: FloatArray = np.bincount(users, loss).astype(np.float64)
    return _weighted_mean(total, np.bincount(users))


def _weighted_mean(totals: FloatArray, counts: IntArray) -> Statistic:
    """The mean over samples of what has these totals and counts by user."""
    return lambda weights: _ratio(_weighted_sum(totals, weights), _weighted_sum(counts, weights))


def _weighted_sum(by_user: FloatArray | IntArray, weights: FloatArray) -> FloatArray:
    """Sum over users, shape [n_resamples]. Not `@`: for slim matrices BLAS threads only contend."""
    total: FloatArray = np.einsum("u,ur->r", by_user, weights)
    return total


def _ratio(numerator: FloatArray, denominator: FloatArray, undefined: float = np.nan) -> FloatArray:
    """Division that gives `undefined` where the denominator is 0."""
    result: FloatArray = np.full(np.shape(denominator), undefined)
    np.divide(numerator, denominator, out=result, where=denominator != 0)
    return result


def _ranks_within(users: IntArray, scores: FloatArray) -> FloatArray:
    """Rank from 1 of each score among its user's scores, ties sharing their mean rank."""
    order = np.lexsort((scores, users))
    u, s = users[order], scores[order]
    new_user = _differs_from_last(u)
    new_tie = new_user | _differs_from_last(s)
    tie = np.cumsum(new_tie) - 1
    tie_start = np.flatnonzero(new_tie)
    tie_size = np.diff(tie_start, append=len(s))
    user_start = np.flatnonzero(new_user)[np.cumsum(new_user) - 1]
    ranks = np.empty(len(s))
    ranks[order] = tie_start[tie] + (tie_size[tie] + 1) / 2 - user_start
    return ranks


def _differs_from_last(values: FloatArray | IntArray) -> BoolArray:
    """True where a value is another than the one before it, and for the first."""
    differs = np.ones(len(values), dtype=np.bool_)
    differs[1:] = values[1:] != values[:-1]
    return differs
