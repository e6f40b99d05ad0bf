from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from tallrec.baselines import COUNTING_BASELINES
from tallrec.baselines.trivial import (
    HISTORY_PRIOR_EVENTS,
    ITEM_PRIOR_EVENTS,
    fit_item_mean,
    fit_like_rate_item_mean,
    like_rate,
)
from tallrec.evaluate import METRICS
from tallrec.types import Samples
from tests.baselines.contract import ScorerContract, with_empty_histories, with_unseen_targets
from tests.planted import planted_splits, planted_taste


class TestLikeRate(ScorerContract):
    fit = staticmethod(COUNTING_BASELINES["like-rate"])


class TestItemMean(ScorerContract):
    fit = staticmethod(COUNTING_BASELINES["item mean"])


class TestBoth(ScorerContract):
    fit = staticmethod(COUNTING_BASELINES["like-rate + item mean"])


class TestPlantedRule(ScorerContract):
    """The suite's own check: what it asks of a personalising scorer can be met."""

    personalises = True

    @staticmethod
    def fit(_shots):
        return planted_taste


@pytest.fixture(scope="module")
def planted():
    return planted_splits()


def make_samples(histories: list[list[tuple[str, bool]]], targets: list[tuple[str, bool]]):
    """One user a sample, who has met exactly its history."""
    catalog = pl.DataFrame({"item": ["a", "b", "c", "d"], "title": ["A", "B", "C", "D"]})
    users = pl.Enum([str(u) for u in range(len(histories))])
    items = pl.Enum(catalog["item"])
    flat = [(str(u), *event) for u, history in enumerate(histories) for event in history]
    stops = np.cumsum([len(history) for history in histories])
    events = pl.DataFrame(
        flat, schema={"user": users, "item": items, "liked": pl.Boolean}, orient="row"
    )
    rows = pl.DataFrame(
        {
            "user": pl.Series([str(u) for u in range(len(histories))], dtype=users),
            "start": stops - [len(history) for history in histories],
            "stop": stops,
            "target": pl.Series([item for item, _ in targets], dtype=items),
            "liked": [liked for _, liked in targets],
        }
    )
    return Samples(catalog, events, rows)


def logit(p):
    return np.log(p / (1 - p))


def test_like_rate_is_laplace_smoothed_log_odds():
    samples = make_samples(
        [[("a", True), ("b", True), ("c", False)], [("a", False)], []],
        [("d", True), ("d", False), ("d", True)],
    )
    np.testing.assert_allclose(like_rate(samples), np.log([3 / 2, 1 / 2, 1]))


def test_item_mean_counts_histories_and_targets():
    shots = make_samples([[("a", True), ("b", False)], [("a", True)]], [("c", True), ("b", False)])
    # Five opinions, three of them likes: a liked twice, b disliked twice, c liked once.
    mean, prior = (3 + 1) / (5 + 2), ITEM_PRIOR_EVENTS
    expected = [
        logit((2 + prior * mean) / (2 + prior)),
        logit((0 + prior * mean) / (2 + prior)),
        logit((1 + prior * mean) / (1 + prior)),
        logit(mean),
    ]
    asked = make_samples([[]] * 4, [(item, True) for item in "abcd"])
    np.testing.assert_allclose(fit_item_mean(shots)(asked), expected)


def test_an_opinion_counts_once_however_many_shots_show_it():
    shots = make_samples([[("a", True), ("b", False)]], [("c", True)])
    repeated = shots[[0, 0, 0]]
    # Another shot asks about b, which the first one has in its history.
    asks_b = shots.rows.with_columns(
        stop=pl.lit(1, pl.Int64),
        target=pl.lit("b").cast(shots.rows["target"].dtype),
        liked=pl.lit(False),
    )
    overlapping = replace(shots, rows=pl.concat([shots.rows, asks_b]))
    asked = make_samples([[]] * 3, [(item, True) for item in "abc"])
    expected = fit_item_mean(shots)(asked)
    np.testing.assert_array_equal(fit_item_mean(repeated)(asked), expected)
    np.testing.assert_array_equal(fit_item_mean(overlapping)(asked), expected)


def test_events_outside_every_history_are_not_read(planted):
    shots = planted.train[:3]
    stop = int(shots.spans.max())
    later = pl.Series(np.arange(shots.events.height) > stop)
    flipped = shots.events.with_columns(liked=pl.col("liked") ^ later)
    expected = fit_item_mean(shots)(planted.test)
    np.testing.assert_array_equal(
        fit_item_mean(replace(shots, events=flipped))(planted.test), expected
    )


def test_both_add_their_evidence():
    shots = make_samples([[("a", True), ("b", False)], [("a", True)]], [("c", True), ("b", False)])
    asked = make_samples([[("b", True), ("c", True)], []], [("a", True), ("a", True)])
    mean, prior = (3 + 1) / (5 + 2), HISTORY_PRIOR_EVENTS
    item = fit_item_mean(shots)(asked)
    history = logit((2 + prior * mean) / (2 + prior)) - logit(mean)
    np.testing.assert_allclose(fit_like_rate_item_mean(shots)(asked), item + np.array([history, 0]))


def test_what_is_unknown_falls_back_to_what_is_known(planted):
    unseen, empty = with_unseen_targets(planted.test), with_empty_histories(planted.test)
    item_mean, both = fit_item_mean(planted.train), fit_like_rate_item_mean(planted.train)
    assert len(np.unique(item_mean(unseen))) == 1
    assert METRICS["auc"](unseen.labels, both(unseen), unseen.users) == METRICS["auc"](
        unseen.labels, like_rate(unseen), unseen.users
    )
    np.testing.assert_allclose(both(empty), item_mean(empty))


def test_items_are_known_by_id_whatever_their_place_in_the_catalogue(planted):
    test = planted.test
    reversed_items = test.catalog.reverse()
    codes = pl.Enum(reversed_items["item"])
    moved = Samples(
        reversed_items,
        test.events.with_columns(pl.col("item").cast(pl.String).cast(codes)),
        test.rows.with_columns(pl.col("target").cast(pl.String).cast(codes)),
    )
    score = fit_item_mean(planted.train)
    np.testing.assert_array_equal(score(moved), score(test))


@pytest.mark.parametrize("name", COUNTING_BASELINES)
def test_no_shots_still_score(planted, name):
    scores = COUNTING_BASELINES[name](planted.train[:0])(planted.test)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("fit", [fit_item_mean, fit_like_rate_item_mean])
def test_shots_without_labels_are_refused(planted, fit):
    unlabelled = planted.train.rows.with_columns(liked=pl.lit(None, pl.Boolean))
    with pytest.raises(ValueError, match="no labels"):
        fit(replace(planted.train, rows=unlabelled))
