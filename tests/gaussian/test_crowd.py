"""The process of many opinions: items counted without the own opinion, users as processes."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from tallrec.gaussian import CrowdProcess, Titles, crowd
from tallrec.gaussian.asking import _log_odds_of
from tallrec.gaussian.fitting import Weights
from tallrec.gaussian.inputs import Opinions, shown_in
from tallrec.gaussian.kernel import covariance
from tests.baselines.contract import ScorerContract
from tests.gaussian.test_process import describe
from tests.planted import planted_splits


def fit(samples):
    return CrowdProcess.fit(samples, Titles.of(samples.catalog, describe, 8))


class TestContract(ScorerContract):
    personalises = True
    fit = staticmethod(fit)


@pytest.fixture(scope="module")
def splits():
    return planted_splits()


@pytest.fixture(scope="module")
def process(splits):
    return fit(splits.train)


def test_a_score_is_that_of_the_textbook(process, splits):
    sample = splits.test[[3]]
    (start, stop), target = sample.spans[0], sample.targets[0]
    codes = np.append(sample.event_items[start:stop], target)
    h = stop - start
    items = process.titles.items_of(sample.catalog, process.counts)[codes]
    own = Opinions(np.zeros(h + 1, dtype=int), np.arange(h + 1.0), items)
    total = covariance(process.weights.parts, own, own)
    answers = np.where(sample.event_likes[start:stop], 1.0, -1.0)
    noisy = total[:h, :h] + process.weights.noise * np.eye(h)
    left = answers - process.worth[codes[:h]]
    mean = process.worth[target] + total[h, :h] @ np.linalg.solve(noisy, left)
    assert process(sample)[0] == pytest.approx(_log_odds_of(np.array([mean])).item(), abs=1e-9)


def test_worth_is_a_shrunk_mean_of_all_opinions(process, splits):
    shown = shown_in(splits.train)
    answers = np.where(shown.liked, 1.0, -1.0)
    of_item = answers[shown.items == 4]
    assert len(of_item) > 1
    expected = (of_item.sum() + 5 * answers.mean()) / (len(of_item) + 5)
    assert process.worth[4] == pytest.approx(expected)


def test_no_opinion_explains_itself(splits, monkeypatch):
    """Of an item that only one opinion is about, weights are learnt from that and the mean."""
    learnt_from = []

    def fit_weights(histories):
        learnt_from.extend(histories)
        return Weights({"user": 0.1}, 0.6)

    monkeypatch.setattr(crowd, "fit_user_weights", fit_weights)
    process = fit(splits.train[:1])
    assert process.counts.max() == 1
    ((own, left),) = learnt_from
    shown = shown_in(splits.train[:1])
    answer = dict(zip(shown.items, np.where(shown.liked, 1.0, -1.0), strict=True))
    expected = [answer[code] - process.mean for code in own.items.codes]
    np.testing.assert_allclose(left, expected)


def test_answers_of_one_kind_are_refused(splits):
    train = splits.train
    alike = train.rows.with_columns(liked=pl.lit(value=True))
    events = train.events.with_columns(liked=pl.lit(value=True))
    with pytest.raises(ValueError, match=r"both likes and dislikes"):
        fit(replace(train, rows=alike, events=events))
