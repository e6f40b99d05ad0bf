"""What every `Scorer` promises. A new one is tested by a dozen lines:

class TestMine(ScorerContract):
    personalises = True

    def fit(self, shots):
        return fit_mine(shots, epochs=5)
"""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from tallrec.evaluate import METRICS
from tallrec.types import Samples, Scorer, Splits
from tests.planted import N_UNSEEN, planted_splits


class ScorerContract:
    """Subclass it, say how to fit, and whether the scorer reads what a user liked."""

    personalises = False
    tolerance = 1e-6
    """How far a score may depend on its batch."""

    @staticmethod
    def fit(shots: Samples) -> Scorer:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def planted(cls) -> Splits:
        return planted_splits()

    @pytest.fixture(scope="class")
    @classmethod
    def scorer(cls, planted: Splits) -> Scorer:
        return cls.fit(planted.train)

    def test_one_finite_or_missing_log_odds_a_sample(self, scorer: Scorer, planted: Splits) -> None:
        scores = scorer(planted.test)
        assert scores.shape == (len(planted.test),)
        assert scores.dtype == np.float64
        assert not np.isinf(scores).any()

    def test_order_is_kept(self, scorer: Scorer, planted: Splits) -> None:
        order = np.random.default_rng(0).permutation(len(planted.test))
        expected = scorer(planted.test)[order]
        np.testing.assert_allclose(scorer(planted.test[order]), expected, atol=self.tolerance)

    def test_a_score_does_not_depend_on_its_batch(self, scorer: Scorer, planted: Splits) -> None:
        expected = scorer(planted.test)
        for part in ([3], [0, 1, 2, 3, 4], [7, 7, 3]):
            np.testing.assert_allclose(
                scorer(planted.test[part]), expected[part], atol=self.tolerance
            )

    def test_no_samples_no_scores(self, scorer: Scorer, planted: Splits) -> None:
        assert scorer(planted.test[:0]).shape == (0,)

    def test_labels_are_not_read(self, scorer: Scorer, planted: Splits) -> None:
        unlabelled = planted.test.rows.with_columns(liked=pl.lit(None, pl.Boolean))
        scores = scorer(replace(planted.test, rows=unlabelled))
        np.testing.assert_allclose(scores, scorer(planted.test), atol=self.tolerance)

    def test_an_unseen_item_gets_a_score_or_nan(self, scorer: Scorer, planted: Splits) -> None:
        scores = scorer(with_unseen_targets(planted.test))
        assert scores.shape == (len(planted.test),)
        assert not np.isinf(scores).any()

    def test_an_empty_history_gets_a_score_or_nan(self, scorer: Scorer, planted: Splits) -> None:
        scores = scorer(with_empty_histories(planted.test))
        assert scores.shape == (len(planted.test),)
        assert not np.isinf(scores).any()

    def test_planted_taste(self, scorer: Scorer, planted: Splits) -> None:
        test = planted.test
        auc = METRICS["auc"](test.labels, scorer(test), test.users)
        assert auc > 0.9 if self.personalises else 0.3 < auc < 0.7


def with_unseen_targets(samples: Samples) -> Samples:
    """The same questions about items that nobody has met."""
    unseen = samples.catalog["item"].tail(N_UNSEEN)
    targets = unseen.sample(len(samples), with_replacement=True, seed=0)
    return replace(
        samples,
        rows=samples.rows.with_columns(target=targets.cast(samples.rows["target"].dtype)),
    )


def with_empty_histories(samples: Samples) -> Samples:
    """The same questions about users of whom nothing is known."""
    return replace(samples, rows=samples.rows.with_columns(start="stop"))
