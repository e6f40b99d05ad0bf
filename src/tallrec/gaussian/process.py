"""A Gaussian process over opinions: a recommender that learns from shots, and then from a history.

What the shots say about items is worked out once. A user's own history then updates it exactly: how
generous they are, lately above all, and which kinds of titles they like. The backbone knows titles,
and what it knows counts as much as the shots bear out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy.linalg import cholesky, solve_triangular

from tallrec.gaussian.fitting import Weights, fit_weights, signed, some_users
from tallrec.gaussian.inputs import Items, Opinions, Shown, opinions_of_others, shown_in
from tallrec.gaussian.kernel import covariance, item_covariance
from tallrec.gaussian.titles import Titles
from tallrec.types import FloatArray, IntArray, Samples

MOST_OPINIONS = 8000
_ROWS_AT_ONCE = 4096
_KEPT_NUMBERS = 2**25  # 256 MiB
_CERTAIN = 0.9


class Read(NamedTuple):
    """A catalogue, its items, and what the shots say of each, if that is not too much to keep."""

    catalog: pl.DataFrame
    items: Items
    known: FloatArray | None


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted process; a `Scorer`.

    Answers of 1 and -1 are regressed on (Rasmussen and Williams, 2006, section 6.5). Whoever is
    asked about counts as a new user: of them, only the sample's history is known.

    Attributes:
        shown: The opinions of the shots.
        titles: Says what items are.
        weights: How much each part of the kernel counts.
    """

    shown: Shown
    titles: Titles
    weights: Weights
    _read: list[Read] = field(default_factory=list, repr=False)

    @classmethod
    def fit(cls, shots: Samples, titles: Titles) -> GaussianProcess:
        """Learns from shots, histories included.

        Args:
            shots: Labelled samples.
            titles: What is known of the titles of their catalogue.

        Raises:
            ValueError: If a shot has no label, all answers are the same, or there are more than
                `MOST_OPINIONS`.
        """
        shown = shown_in(shots)
        if len(shown.liked) > MOST_OPINIONS:
            raise ValueError(
                f"the shots show {len(shown.liked):,} opinions, and a Gaussian process of more "
                f"than {MOST_OPINIONS:,} takes too long: give fewer shots or leave it out"
            )
        if shown.liked.all() or not shown.liked.any():
            raise ValueError("a Gaussian process needs shots with both likes and dislikes")
        bare = cls(shown, titles, Weights({}, 1.0))
        some = some_users(shown.users)
        return cls(shown, titles, fit_weights(bare._opinions[some], shown.liked[some]))

    def __call__(self, samples: Samples) -> FloatArray:
        """Log-odds of a like, shape [n]; see `Scorer`."""
        read = self._reading(samples.catalog)
        scores = np.zeros(len(samples))
        for start in range(0, len(samples), _ROWS_AT_ONCE):
            rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(samples)))
            scores[rows] = self._score(samples[rows], read)
        return scores

    def _reading(self, catalog: pl.DataFrame) -> Read:
        """What is known of a catalogue; of the last one it stays known."""
        if not self._read or self._read[0].catalog is not catalog:
            items = self._items_of(catalog)
            few = len(self.shown.liked) * catalog.height <= _KEPT_NUMBERS
            self._read[:] = [Read(catalog, items, self._known(items) if few else None)]
        return self._read[0]

    def _items_of(self, catalog: pl.DataFrame) -> Items:
        counts = np.bincount(self.shown.items, minlength=self.titles.catalog.height)
        return self.titles.items_of(catalog, counts)

    def _known(self, items: Items) -> FloatArray:
        """What the shots say of items, L^-1 k(shots, item), shape [n_shown, n]."""
        shared = item_covariance(self.weights.parts, self._opinions.items, items)
        known: FloatArray = solve_triangular(self._solved[0], shared, lower=True, overwrite_b=True)
        return known

    @cached_property
    def _opinions(self) -> Opinions:
        return opinions_of_others(self.shown, self._items_of(self.titles.catalog))

    @cached_property
    def _solved(self) -> tuple[FloatArray, FloatArray]:
        """L, with L L^T the covariance of the shots' answers, and L^-1 times the answers."""
        total = covariance(self.weights.parts, self._opinions, self._opinions)
        total[np.diag_indices_from(total)] += self.weights.noise
        factor = cholesky(total, lower=True, overwrite_a=True)
        return factor, solve_triangular(factor, signed(self.shown.liked), lower=True)

    def _score(self, samples: Samples, read: Read) -> FloatArray:
        starts, stops = samples.spans.T
        shown = [samples.event_items[start:stop] for start, stop in samples.spans]
        met = np.unique(np.concatenate([samples.targets, *shown]))
        items = read.items[met]
        known = self._known(items) if read.known is None else read.known[:, met]
        expected = known.T @ self._solved[1]
        scores = np.zeros(len(samples))
        for rows in _of_one_history(starts, stops):
            start, stop = starts[rows[0]], stops[rows[0]]
            codes = np.append(samples.event_items[start:stop], samples.targets[rows])
            at = np.searchsorted(met, codes)
            opinions = _of_a_new_user(items[at], int(stop - start))
            answers = signed(samples.event_likes[start:stop])
            scores[rows] = self._log_odds(opinions, answers, known[:, at], expected[at])
        return scores

    def _log_odds(
        self, opinions: Opinions, answers: FloatArray, known: FloatArray, expected: FloatArray
    ) -> FloatArray:
        """Log-odds of what a history is followed by.

        Args:
            opinions: Those of the history, then the targets as if each came next.
            answers: The history's, 1 or -1, shape [h].
            known: Of the items, L^-1 k(shots, item), shape [n_shown, h + m].
            expected: Of the items, the mean that the shots leave, shape [h + m].
        """
        h = len(answers)
        history, targets = opinions[np.arange(h)], opinions[np.arange(h, len(expected))]
        of_history, of_targets = known[:, :h], known[:, h:]
        parts, noise = self.weights.parts, self.weights.noise
        mean = expected[h:]
        if h:
            left = covariance(parts, history, history) - of_history.T @ of_history
            left[np.diag_indices_from(left)] += noise
            cross = covariance(parts, history, targets) - of_history.T @ of_targets
            factor = cholesky(left, lower=True, overwrite_a=True)
            cross = solve_triangular(factor, cross, lower=True, overwrite_b=True)
            mean = mean + solve_triangular(factor, answers - expected[:h], lower=True) @ cross
        return _log_odds_of(mean)


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
