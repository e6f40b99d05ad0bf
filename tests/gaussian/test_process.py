"""The Gaussian process scores by its formula, learns planted taste, and keeps what it learnt."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy.optimize import check_grad

from tallrec.data.samples import with_histories
from tallrec.data.shots import draw_shots
from tallrec.gaussian import GaussianProcess, Titles, load_process, save_process
from tallrec.gaussian import process as process_module
from tallrec.gaussian.asking import _log_odds_of
from tallrec.gaussian.fitting import Weights, _loss, signed, some_users
from tallrec.gaussian.inputs import Opinions, opinions_of_others, shown_in
from tallrec.gaussian.kernel import ITEM_PARTS, USER_PARTS, covariance, part_covariances
from tests.baselines.contract import ScorerContract
from tests.planted import kind, planted_splits

WIDTH = 12


def describe(catalog: pl.DataFrame) -> np.ndarray:
    """Hidden states of an encoder that tells Sea from Hill, among much else."""
    rng = np.random.default_rng(7)
    states = rng.normal(size=(catalog.height, WIDTH))
    states[:, 0] = [5.0 if kind(title) == "Sea" else -5.0 for title in catalog["title"]]
    return states


def fit(shots, components=8):
    return GaussianProcess.fit(shots, Titles.of(shots.catalog, describe, components))


@pytest.fixture(scope="module")
def splits():
    return planted_splits()


@pytest.fixture(scope="module")
def shots(splits):
    return draw_shots(splits.train, 16, seed=0, stratify="user")


@pytest.fixture(scope="module")
def process(shots):
    return fit(shots)


class TestContract(ScorerContract):
    personalises = True

    @staticmethod
    def fit(shots):
        return fit(draw_shots(shots, 64, seed=0, stratify="user"))


class TestContractOfTitlesThatSayNothing(ScorerContract):
    """Without the backbone's knowledge there is nothing but counts, which are worthless here."""

    personalises = False

    @staticmethod
    def fit(shots):
        sixteen = draw_shots(shots, 16, seed=0, stratify="user")
        titles = Titles.of(shots.catalog, lambda catalog: np.ones((catalog.height, 3)), 2)
        return GaussianProcess.fit(sixteen, titles)


def test_a_score_is_that_of_one_large_process(process, splits):
    """The shots' answers and a history, conditioned on at once by the textbook's formula."""
    samples = splits.test[[0, 5, 17]]
    items = process._items_of(samples.catalog)
    for row, sample_score in enumerate(process(samples)):
        start, stop = samples.spans[row]
        codes = np.append(samples.event_items[start:stop], samples.targets[row])
        h = stop - start
        asked = Opinions(np.full(h + 1, 10_000), np.arange(h + 1.0), items[codes])
        known = process._opinions
        parts, noise = process.weights.parts, process.weights.noise
        rows = np.arange(h)
        shots_and_history = np.block(
            [
                [covariance(parts, known, known), covariance(parts, known, asked[rows])],
                [
                    covariance(parts, asked[rows], known),
                    covariance(parts, asked[rows], asked[rows]),
                ],
            ]
        )
        last = asked[np.array([h])]
        cross = np.vstack([covariance(parts, known, last), covariance(parts, asked[rows], last)])
        answers = signed(np.append(process.shown.liked, samples.event_likes[start:stop]))
        noisy = shots_and_history + noise * np.eye(len(answers))
        mean = (cross.T @ np.linalg.solve(noisy, answers)).item()
        expected = _log_odds_of(np.array([mean])).item()
        assert sample_score == pytest.approx(expected, rel=1e-6)


def test_log_odds_are_those_of_the_mean_and_rise_where_it_leaves_the_range_of_answers():
    means = np.linspace(-1.5, 1.5, 301)
    log_odds = _log_odds_of(means)
    likely = np.abs(means) < 0.9
    chance = (1 + means[likely]) / 2
    np.testing.assert_allclose(log_odds[likely], np.log(chance / (1 - chance)), atol=1e-9)
    assert (np.diff(log_odds) > 0).all()
    assert np.isfinite(log_odds).all()
    np.testing.assert_allclose(log_odds, -log_odds[::-1], atol=1e-9)


def test_the_gradient_is_that_of_the_loss(shots):
    some = shots[:4]
    shown = shown_in(some)
    items = Titles.of(some.catalog, describe, 4).items_of(
        some.catalog, np.bincount(shown.items, minlength=some.catalog.height)
    )
    opinions = opinions_of_others(shown, items)
    parts = [part for _, part in part_covariances(opinions, opinions) if part.any()]
    prior = np.log(np.full(len(parts) + 1, 0.2))
    answers = signed(shown.liked)
    some = np.arange(20)
    groups = [(np.stack(parts), answers), (np.stack(parts)[:, some][:, :, some], answers[some])]
    arguments = (prior, groups)
    point = prior + np.linspace(-0.5, 0.5, len(prior))
    error = check_grad(
        lambda logs: _loss(logs, *arguments)[0], lambda logs: _loss(logs, *arguments)[1], point
    )
    assert error < 1e-4


def test_every_part_is_a_covariance(process):
    """Symmetric, and no sum of opinions has a negative variance."""
    opinions = process._opinions
    names = [name for name, _ in part_covariances(opinions, opinions)]
    assert names == [*ITEM_PARTS, *USER_PARTS]
    for name, part in part_covariances(opinions, opinions):
        np.testing.assert_allclose(part, part.T, atol=1e-12)
        assert np.linalg.eigvalsh(part).min() > -1e-6, name


def test_parts_that_the_shots_cannot_show_have_no_weight(process):
    assert "year" not in process.weights.parts
    assert "creator" not in process.weights.parts
    assert process.weights.parts["user, title"] > 0.05  # the planted taste


def test_years_and_creators_count_where_they_are_known(splits):
    catalog = splits.train.catalog.with_columns(
        title=pl.col("title")
        + pl.when(pl.int_range(pl.len()) % 2 == 0)
        .then(pl.lit(" (1950)"))
        .otherwise(pl.lit(" (1999)")),
        creator=pl.lit("one author"),
    )
    shots = draw_shots(replace(splits.train, catalog=catalog), 16, seed=0)
    weights = fit(shots).weights
    assert {"year", "decade", "user, year", "creator", "user, creator"} <= weights.parts.keys()


def test_an_opinion_does_not_make_its_own_item_popular(process):
    shown = process.shown
    for n in (0, 50):
        others = np.sum((shown.items == shown.items[n]) & (shown.users != shown.users[n]))
        assert np.expm1(process._opinions.items.popularity[n]) == pytest.approx(others)


def test_an_opinion_counts_once_however_often_it_is_shown(splits):
    """Histories of one user's successive samples overlap, and a target becomes history."""
    of_one_user = splits.train[:5]
    shown = shown_in(of_one_user)
    pairs = set(zip(shown.users.tolist(), shown.items.tolist(), strict=True))
    assert len(pairs) == len(shown.liked) == 8 + 5


def test_what_was_learnt_is_kept(process, splits, tmp_path):
    path = tmp_path / "process.npz"
    save_process(process, path)
    catalog = splits.train.catalog
    again = load_process(path, catalog, describe)
    np.testing.assert_allclose(again(splits.test), process(splits.test), atol=1e-4)
    with pytest.raises(ValueError, match="knows 22 items, but the catalogue has 21"):
        load_process(path, catalog[:-1], describe)
    path.write_bytes(b"not a process")
    with pytest.raises(ValueError, match="no Gaussian process that can be read"):
        load_process(path, catalog, describe)


def test_titles_of_another_catalogue_are_described(process, splits):
    """The same items in another order, and one more, keep their scores."""
    test = splits.test
    more = pl.DataFrame({"item": ["new"], "title": ["Sea of stars"], "creator": [None]})
    catalog = pl.concat([more.cast({"creator": pl.String}), test.catalog.reverse()])
    ids = pl.Enum(catalog["item"])
    other = replace(
        test,
        catalog=catalog,
        events=test.events.with_columns(pl.col("item").cast(pl.String).cast(ids)),
        rows=test.rows.with_columns(pl.col("target").cast(pl.String).cast(ids)),
    )
    np.testing.assert_allclose(process(other), process(test), atol=1e-9)
    new = replace(other, rows=other.rows.with_columns(target=pl.lit("new", ids)))
    assert np.isfinite(process(new)).all()


def test_a_catalogue_too_large_to_keep_is_read_row_by_row(process, splits, monkeypatch):
    expected = process(splits.test)
    monkeypatch.setattr(process_module, "_KEPT_NUMBERS", 0)
    frugal = GaussianProcess(process.shown, process.titles, process.weights)
    np.testing.assert_allclose(frugal(splits.test), expected, atol=1e-9)
    assert frugal._read[0].known is None


def test_weights_are_learnt_from_whole_users():
    users = np.repeat(np.arange(400), 11)
    some = some_users(users)
    assert len(some) <= 1500
    counts = np.bincount(users[some])
    assert set(counts[counts > 0]) == {11}
    assert (np.diff(some) > 0).all()


def test_what_cannot_be_fitted_says_why(shots, monkeypatch):
    alike = shots.rows.with_columns(liked=pl.lit(value=True))
    events = shots.events.with_columns(liked=pl.lit(value=True))
    with pytest.raises(ValueError, match="both likes and dislikes"):
        fit(replace(shots, rows=alike, events=events))
    monkeypatch.setattr(process_module, "MOST_OPINIONS", 100)
    with pytest.raises(ValueError, match=r"opinions, and a Gaussian process of more than 100"):
        fit(shots)


def test_longer_histories_are_the_users_own(splits):
    test = splits.test
    longer = with_histories(test, 1000)
    users = longer.events["user"].to_physical().to_numpy()
    for (start, stop), user in zip(longer.spans, longer.users, strict=True):
        assert (users[start:stop] == user).all()
        assert start == 0 or users[start - 1] != user
    assert (with_histories(test, 3).spans[:, 0] == test.spans[:, 1] - 3).all()
    with pytest.raises(ValueError, match="at least 1 event long; got 0"):
        with_histories(test, 0)


def test_weights_without_parts_score_by_nothing(process, splits):
    empty = GaussianProcess(process.shown, process.titles, Weights({}, 1.0))
    np.testing.assert_array_equal(empty(splits.test), np.zeros(len(splits.test)))
