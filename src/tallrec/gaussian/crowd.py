"""The same process where there are opinions of many: items are counted, users are processes.

Of thousands of opinions the joint covariance is too large to solve, and not needed: what an item is
worth to all, its own opinions tell. What a user's history adds is worked out exactly as ever.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tallrec.gaussian.asking import items_met, score_histories
from tallrec.gaussian.fitting import Weights, fit_user_weights, signed
from tallrec.gaussian.inputs import Opinions, Shown, shown_in
from tallrec.gaussian.titles import Titles
from tallrec.types import FloatArray, IntArray, Samples

# Weights are learnt from so many users and so many of the latest opinions of each: enough that
# other users give the same weights, and a few seconds of work.
_USERS, _LATEST = 200, 60
_PRIOR_OPINIONS = 5.0


@dataclass(frozen=True)
class CrowdProcess:
    """A process fitted on the opinions of many; a `Scorer`.

    Attributes:
        titles: Says what items are.
        counts: How many opinions there are about each item, shape [n_items].
        worth: The mean answer about each item, 1 or -1, shrunk to the mean of all, shape [n_items].
        mean: The mean of all answers.
        weights: How much each part of the kernel counts.
    """

    titles: Titles
    counts: IntArray
    worth: FloatArray
    mean: float
    weights: Weights

    @classmethod
    def fit(cls, samples: Samples, titles: Titles, *, seed: int = 0) -> CrowdProcess:
        """Learns from samples, histories included.

        Args:
            samples: Labelled samples.
            titles: What is known of the titles of their catalogue.
            seed: Draws the users whom weights are learnt from.

        Raises:
            ValueError: If a sample has no label, or all answers are the same.
        """
        shown = shown_in(samples)
        if shown.liked.all() or not shown.liked.any():
            raise ValueError("a Gaussian process needs both likes and dislikes to learn from")
        answers = signed(shown.liked)
        n_items = titles.catalog.height
        counts = np.bincount(shown.items, minlength=n_items)
        sums = np.bincount(shown.items, answers, minlength=n_items).astype(np.float64)
        mean = float(answers.mean())
        # What others think of the item: an opinion must not be explained by itself.
        others = _shrunk(sums[shown.items] - answers, counts[shown.items] - 1, mean)
        histories = _histories(shown, answers - others, titles, counts, seed)
        weights = fit_user_weights(histories)
        return cls(titles, counts, _shrunk(sums, counts, mean), mean, weights)

    def __call__(self, samples: Samples) -> FloatArray:
        """Log-odds of a like, shape [n]; see `Scorer`."""
        if not len(samples):
            return np.zeros(0)
        met = items_met(samples)
        items = self.titles.items_of(samples.catalog, self.counts)[met]
        new = items.codes >= len(self.worth)
        expected = np.where(new, self.mean, self.worth[np.where(new, 0, items.codes)])
        nothing = np.zeros((0, len(met)))
        return score_histories(samples, met, items, self.weights, nothing, expected)


def _shrunk(sums: FloatArray, counts: IntArray, mean: float) -> FloatArray:
    shrunk: FloatArray = (sums + _PRIOR_OPINIONS * mean) / (counts + _PRIOR_OPINIONS)
    return shrunk


def _histories(
    shown: Shown, left: FloatArray, titles: Titles, counts: IntArray, seed: int
) -> list[tuple[Opinions, FloatArray]]:
    """The latest opinions of some users, and what is left of their answers."""
    items = titles.items_of(titles.catalog, counts)
    order = np.lexsort((shown.positions, shown.users))
    each = np.split(order, np.flatnonzero(np.diff(shown.users[order])) + 1)
    chosen = np.random.default_rng(seed).permutation(len(each))[:_USERS]
    histories = []
    for rows in (each[i][-_LATEST:] for i in chosen):
        places = np.arange(len(rows), dtype=np.float64)
        own = Opinions(np.zeros_like(rows), places, items[shown.items[rows]])
        histories.append((own, left[rows]))
    return histories
