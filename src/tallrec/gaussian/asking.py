"""What a user's history adds to what is known of items: the posterior of a new user's answers."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from tallrec.gaussian.fitting import Weights, signed
from tallrec.gaussian.inputs import Items, Opinions
from tallrec.gaussian.kernel import covariance
from tallrec.types import FloatArray, IntArray, Samples

_CERTAIN = 0.9


def items_met(samples: Samples) -> IntArray:
    """The items of the histories and targets, each once, in ascending order."""
    shown = [samples.event_items[start:stop] for start, stop in samples.spans]
    return np.unique(np.concatenate([samples.targets, *shown]))


def score_histories(
    samples: Samples,
    met: IntArray,
    items: Items,
    weights: Weights,
    known: FloatArray,
    expected: FloatArray,
) -> FloatArray:
    """Log-odds of a like for the target of each sample, given its history, shape [n].

    Answers of 1 and -1 are regressed on (Rasmussen and Williams, 2006, section 6.5). Whoever is
    asked about counts as a new user.

    Args:
        samples: What to score.
        met: Their items, as by `items_met`, shape [m].
        items: What these are.
        weights: How much each part of the kernel counts.
        known: L^-1 k(shown, item), with L L^T the covariance of answers that were shown before;
            what they explain is no longer to be explained; shape [n_shown, m].
        expected: The mean of an answer that these leave, shape [m].
    """
    starts, stops = samples.spans.T
    scores = np.zeros(len(samples))
    for rows in _of_one_history(starts, stops):
        start, stop = starts[rows[0]], stops[rows[0]]
        codes = np.append(samples.event_items[start:stop], samples.targets[rows])
        at = np.searchsorted(met, codes)
        opinions = _of_a_new_user(items[at], int(stop - start))
        answers = signed(samples.event_likes[start:stop])
        mean = _mean_after(answers, opinions, weights, known[:, at], expected[at])
        scores[rows] = _log_odds_of(mean)
    return scores


def _mean_after(
    answers: FloatArray,
    opinions: Opinions,
    weights: Weights,
    known: FloatArray,
    expected: FloatArray,
) -> FloatArray:
    """The mean of the answers that follow a history.

    Args:
        answers: The history's, 1 or -1, shape [h].
        opinions: Those of the history, then the targets as if each came next.
        weights: As above.
        known: As above, of the opinions' items, shape [n_shown, h + m].
        expected: As above, shape [h + m].
    """
    h = len(answers)
    mean = expected[h:]
    if h:
        history, targets = opinions[np.arange(h)], opinions[np.arange(h, len(expected))]
        of_history, of_targets = known[:, :h], known[:, h:]
        left = covariance(weights.parts, history, history) - of_history.T @ of_history
        left[np.diag_indices_from(left)] += weights.noise
        cross = covariance(weights.parts, history, targets) - of_history.T @ of_targets
        factor = cholesky(left, lower=True, overwrite_a=True)
        cross = solve_triangular(factor, cross, lower=True, overwrite_b=True)
        mean = mean + solve_triangular(factor, answers - expected[:h], lower=True) @ cross
    return mean


def _log_odds_of(mean: FloatArray) -> FloatArray:
    """Log-odds of a like from the mean of its answer, 1 or -1, shape [n].

    That mean is 2 p - 1. A regression may go beyond 1, so from 0.9 on it goes on as a line.
    """
    inside = np.clip(mean, -_CERTAIN, _CERTAIN)
    slope = 2 / (1 - _CERTAIN**2)
    log_odds: FloatArray = 2 * np.arctanh(inside) + slope * (mean - inside)
    return log_odds


def _of_one_history(starts: IntArray, stops: IntArray) -> list[IntArray]:
    """Row numbers of samples, those with the same history together."""
    _, codes = np.unique(np.stack([starts, stops]), axis=1, return_inverse=True)
    codes = codes.ravel()
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


def _of_a_new_user(items: Items, n_history: int) -> Opinions:
    """Opinions of one user: a history, and what is asked about, each as if it came next."""
    positions = np.minimum(np.arange(len(items.codes)), n_history).astype(np.float64)
    return Opinions(np.zeros_like(items.codes), positions, items)
