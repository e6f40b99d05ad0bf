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

from tallrec.gaussian.asking import items_met, score_histories
from tallrec.gaussian.fitting import Weights, fit_weights, signed, some_users
from tallrec.gaussian.inputs import Items, Opinions, Shown, opinions_of_others, shown_in
from tallrec.gaussian.kernel import covariance, item_covariance
from tallrec.gaussian.titles import Titles
from tallrec.types import FloatArray, Samples

MOST_OPINIONS = 8000
_ROWS_AT_ONCE = 4096
_KEPT_NUMBERS = 2**25  # 256 MiB


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
        met = items_met(samples)
        items = read.items[met]
        known = self._known(items) if read.known is None else read.known[:, met]
        return score_histories(samples, met, items, self.weights, known, known.T @ self._solved[1])
