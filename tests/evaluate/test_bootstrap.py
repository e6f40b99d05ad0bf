import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tallrec.evaluate import METRICS, bootstrap
from tests.evaluate.test_metrics import rows


def resampled(labels, scores, users, weights):
    """The data in which each user's rows are repeated, every copy of a user a user of its own."""
    take, names = [], []
    for user, count in enumerate(weights):
        own = np.flatnonzero(users == user)
        for copy in range(int(count)):
            take.append(own)
            names.append(np.full(len(own), user * 100 + copy))
    take, names = np.concatenate(take), np.concatenate(names)
    return labels[take], scores[take], names


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@settings(max_examples=40, deadline=None)
@given(data=rows(), draws=st.integers(0, 1000))
def test_weighting_users_equals_resampling_and_computing(metric, data, draws):
    labels, scores, users = data
    _, users = np.unique(users, return_inverse=True)
    n_users = users.max() + 1
    rng = np.random.default_rng(draws)
    weights = rng.multinomial(n_users, np.full(n_users, 1 / n_users), size=6).T.astype(float)
    expected = [metric(*resampled(labels, scores, users, w)) for w in weights.T]
    actual = metric.by_user_weight(labels, scores, users)(weights)
    np.testing.assert_allclose(actual, expected, atol=1e-12)


@pytest.fixture
def case():
    rng = np.random.default_rng(1)
    users = rng.integers(40, size=600)
    generosity = rng.normal(size=40)[users]
    labels = rng.random(600) < 1 / (1 + np.exp(-generosity))
    return labels, generosity + rng.normal(size=600), np.unique(users, return_inverse=True)[1]


def test_resamples_depend_on_the_seed_and_nothing_else(case, monkeypatch):
    labels, scores, users = case
    statistics = [METRICS["auc"].by_user_weight(labels, scores, users)] * 2

    def draw(seed):
        return bootstrap.resample_users(statistics, 40, 600, n=50, seed=seed)

    first = draw(0)
    assert first.shape == (2, 50)
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first, draw(0))
    assert not np.array_equal(first, draw(1))
    monkeypatch.setattr(bootstrap, "_CHUNK_VALUES", 600 * 7)
    np.testing.assert_allclose(first, draw(0), atol=1e-12)


def test_each_resample_draws_as_many_users_as_there_are():
    seen = []
    bootstrap.resample_users([lambda w: seen.append(w) or w.sum(axis=0)], 7, 7, n=300, seed=3)
    weights = np.concatenate(seen, axis=1)
    assert weights.shape == (7, 300)
    assert (weights.sum(axis=0) == 7).all()
    assert weights.mean(axis=1) == pytest.approx(np.ones(7), abs=0.25)
    assert weights.max() > 2


def test_interval_agrees_with_the_spread_of_fresh_users():
    """The standard error by bootstrap is that of the mean over users, for which theory knows it."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(200), 5)
    labels = np.zeros(1000, dtype=bool)
    scores = rng.normal(size=200)[users]
    loss = METRICS["log_loss"].by_user_weight(labels, scores, users)
    values = bootstrap.resample_users([loss], 200, 1000)[0]
    expected = np.logaddexp(0, scores[::5]).std(ddof=1) / np.sqrt(200)
    assert values.std() == pytest.approx(expected, rel=0.1)
    interval = bootstrap.interval(values)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * expected, rel=0.1)


def test_undefined_resamples_are_dropped_and_counted():
    values = np.array([np.nan, 1.0, 2.0, 3.0, np.nan])
    interval = bootstrap.interval(values, level=0.5)
    assert (interval.low, interval.high, interval.dropped) == (1.5, 2.5, 2)
    nothing = bootstrap.interval(np.full(4, np.nan))
    assert np.isnan([nothing.low, nothing.high]).all()
    assert nothing.dropped == 4


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_p_is_symmetric_and_never_zero(differences):
    values = np.array(differences, dtype=float)
    p = bootstrap.two_sided_p(values)
    assert 0 < p <= 1
    assert p == bootstrap.two_sided_p(-values)


def test_p_counts_the_smaller_side():
    assert bootstrap.two_sided_p(np.arange(1.0, 1000.0)) == pytest.approx(2 / 1000)
    assert bootstrap.two_sided_p(np.array([-1.0, -1, 1, 1, np.nan])) == 1
    assert bootstrap.two_sided_p(np.zeros(5)) == 1
    assert np.isnan(bootstrap.two_sided_p(np.array([np.nan])))


@given(rows(), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_a_system_never_differs_from_itself(data, seed):
    labels, scores, users = data
    _, users = np.unique(users, return_inverse=True)
    assume(0 < labels.sum() < len(labels))
    statistics = [METRICS["auc"].by_user_weight(labels, s, users) for s in (scores, 2 * scores)]
    first, second = bootstrap.resample_users(statistics, users.max() + 1, len(labels), 30, seed)
    np.testing.assert_array_equal(first, second)
