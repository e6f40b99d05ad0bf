import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from tallrec.evaluate import METRICS
from tallrec.evaluate.metrics import sigmoid

auc, gauc, log_loss, brier, ece = METRICS.values()


@st.composite
def rows(draw, max_users=5):
    """(labels, scores, users) with many ties and users of one class among them."""
    n = draw(st.integers(1, 40))
    lists = st.lists
    labels = draw(lists(st.booleans(), min_size=n, max_size=n))
    # Few distinct values, so that ties within and across classes are the rule.
    score = st.one_of(st.integers(-3, 3).map(float), st.floats(-30, 30))
    scores = draw(lists(score, min_size=n, max_size=n))
    users = draw(lists(st.integers(0, max_users - 1), min_size=n, max_size=n))
    return np.array(labels), np.array(scores), np.array(users) * 7 - 3


def both_classes(labels) -> bool:
    return 0 < labels.sum() < len(labels)


@settings(deadline=None)
@given(rows())
def test_auc_equals_scikit_learn(data):
    labels, scores, users = data
    if both_classes(labels):
        expected = sklearn.metrics.roc_auc_score(labels, scores)
        assert auc(labels, scores, users) == pytest.approx(expected, abs=1e-12)
    else:
        assert np.isnan(auc(labels, scores, users))


@settings(deadline=None)
@given(rows())
def test_gauc_is_the_users_own_auc_weighted_by_their_rows(data):
    labels, scores, users = data
    total = weight = 0
    for user in set(users.tolist()):
        own = users == user
        if both_classes(labels[own]):
            total += own.sum() * sklearn.metrics.roc_auc_score(labels[own], scores[own])
            weight += own.sum()
    if weight:
        assert gauc(labels, scores, users) == pytest.approx(total / weight, abs=1e-12)
    else:
        assert np.isnan(gauc(labels, scores, users))


@settings(deadline=None)
@given(rows())
def test_log_loss_and_brier_equal_scikit_learn(data):
    labels, scores, users = data
    p = sigmoid(scores)
    expected = sklearn.metrics.log_loss(labels, p, labels=[False, True])
    assert log_loss(labels, scores, users) == pytest.approx(expected, rel=1e-3, abs=1e-12)
    expected = np.mean((p - labels) ** 2)
    assert brier(labels, scores, users) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(rows())
def test_ece_by_its_definition(data):
    labels, scores, users = data
    p = sigmoid(scores)
    bins = np.clip(np.floor(p * 10), 0, 9)
    expected = sum(
        np.mean(bins == b) * abs(labels[bins == b].mean() - p[bins == b].mean())
        for b in set(bins.tolist())
    )
    assert ece(labels, scores, users) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@settings(max_examples=25, deadline=None)
@given(data=rows(), seed=st.integers(0, 10))
def test_what_could_not_be_scored_is_left_out(metric, data, seed):
    labels, scores, users = data
    missing = np.random.default_rng(seed).random(len(labels)) < 0.3
    with_nan = np.where(missing, np.nan, scores)
    np.testing.assert_equal(
        metric(labels, with_nan, users),
        metric(labels[~missing], scores[~missing], users[~missing]),
    )


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_the_order_of_rows_does_not_matter(metric):
    rng = np.random.default_rng(0)
    labels, users = rng.random(300) < 0.6, rng.integers(9, size=300)
    scores = rng.normal(size=300).round(1)
    order = rng.permutation(300)
    assert metric(labels[order], scores[order], users[order]) == pytest.approx(
        metric(labels, scores, users), abs=1e-12
    )


def test_generosity_shows_in_auc_and_not_in_gauc():
    users = np.repeat([0, 1], 10)
    labels = np.array([True] * 8 + [False] * 2 + [True] * 2 + [False] * 8)
    knows_who_is_generous = np.where(users == 0, 1.0, -1.0)
    assert auc(labels, knows_who_is_generous, users) == pytest.approx(0.8)
    assert gauc(labels, knows_who_is_generous, users) == 0.5


def test_gauc_weighs_users_by_their_rows():
    users = np.array([0, 0, 1, 1, 1, 1, 1, 1, 2, 2])
    labels = np.array([1, 0, 1, 1, 1, 0, 0, 0, 1, 1], dtype=bool)
    scores = np.array([0, 1, 1, 1, 1, 0, 0, 0, 5, 5], dtype=float)
    # User 0 is all wrong (2 rows), user 1 all right (6 rows), user 2 has likes only.
    assert gauc(labels, scores, users) == pytest.approx(6 / 8)


def test_certainty_is_extreme_but_finite_for_the_ranking():
    labels, users = np.array([True, False, True]), np.zeros(3, dtype=int)
    scores = np.array([np.inf, -np.inf, np.inf])
    assert auc(labels, scores, users) == gauc(labels, scores, users) == 1
    assert log_loss(labels, scores, users) == brier(labels, scores, users) == 0
    assert log_loss(~labels, scores, users) == np.inf
    assert ece(labels, np.array([1000.0, -1000.0, 1000.0]), users) == 0
