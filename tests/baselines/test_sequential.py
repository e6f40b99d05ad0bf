"""The paper's sequential recommenders learn taste, and keep what every scorer promises."""

import numpy as np
import pytest
import torch

from tallrec.baselines.fitting import FitOptions
from tallrec.baselines.networks import robust_loss
from tallrec.baselines.sequences import Sequences, to_sequences
from tallrec.baselines.sequential import SEQUENTIAL, fit_sequential
from tallrec.evaluate import METRICS
from tests.baselines.contract import ScorerContract, with_empty_histories, with_unseen_targets
from tests.planted import planted_splits

QUICK = FitOptions(width=32, length=8, learning_rate=5e-3, epochs=40)


def of_kinds(titles):
    """Vectors that tell, among other things, what kind of item a title is of."""
    kinds = [
        [title.startswith("Sea"), title.startswith("Hill"), len(title) / 10] for title in titles
    ]
    return torch.tensor(kinds, dtype=torch.float32)


class TestSequential(ScorerContract):
    personalises = True
    tolerance = 1e-5

    @pytest.fixture(scope="class", params=SEQUENTIAL)
    @classmethod
    def scorer(cls, planted, request):
        return fit_sequential(request.param, planted.train, options=QUICK, encode=of_kinds)


@pytest.fixture(scope="module")
def planted():
    return planted_splits()


def test_the_latest_events_stand_last(planted):
    samples = planted.test[:1]
    start, stop = samples.spans[0]
    read = to_sequences(samples, samples.catalog, 3)
    assert read.items_bt.tolist() == [(samples.event_items[stop - 3 : stop] + 1).tolist()]
    assert read.likes_bt.tolist() == [samples.event_likes[stop - 3 : stop].astype(int).tolist()]
    assert read.targets_b.tolist() == [samples.targets[0] + 1]
    wide = to_sequences(samples, samples.catalog, stop - start + 2)
    assert wide.items_bt[0, :2].tolist() == [0, 0]
    assert wide.items_bt[0, 2:].tolist() == (samples.event_items[start:stop] + 1).tolist()
    empty = to_sequences(with_empty_histories(samples), samples.catalog, 3)
    assert empty.items_bt.tolist() == [[0, 0, 0]]


def test_items_are_known_by_their_ids(planted):
    fewer = planted.train.catalog.reverse().head(4)
    read = to_sequences(planted.test[:30], fewer, 8)
    ids = [None, *fewer["item"]]
    for sample, items, target in zip(
        planted.test[:30], read.items_bt.tolist(), read.targets_b.tolist(), strict=True
    ):
        known = [item.id if item.id in ids else None for item, _ in sample.history]
        assert [ids[number] for number in items] == known
        assert ids[target] == (sample.target.id if sample.target.id in ids else None)


def test_a_target_outside_the_fitted_catalogue_has_no_score(planted):
    shots = planted.train[:64]
    scorer = fit_sequential("gru4rec", shots, options=FitOptions(width=8, epochs=1))
    asked = planted.test[:5]
    renamed = asked.catalog.with_columns(item="new " + asked.catalog["item"])
    elsewhere = type(asked)(renamed, asked.events, asked.rows)
    assert np.isnan(scorer(elsewhere)).all()
    assert np.isfinite(scorer(with_unseen_targets(asked))).all()


@pytest.mark.parametrize("name", ["caser", "dros"])
def test_the_same_seed_gives_the_same_scores(planted, name):
    def scores(seed):
        options = FitOptions(width=8, epochs=3, seed=seed)
        return fit_sequential(name, planted.train[:64], options=options)(planted.test)

    before = torch.get_rng_state()
    assert np.array_equal(scores(1), scores(1))
    assert not np.array_equal(scores(1), scores(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_chooses_from_the_grid(planted):
    slow = FitOptions(width=32, length=8, learning_rate=1e-9, epochs=12)
    alone = fit_sequential("caser", planted.train, options=slow)
    chosen = fit_sequential("caser", planted.train, valid=planted.valid, options=slow)
    labels, users = planted.test.labels, planted.test.users
    assert METRICS["auc"](labels, alone(planted.test), users) < 0.8
    assert METRICS["auc"](labels, chosen(planted.test), users) > 0.9


def test_the_robust_loss_is_that_of_its_paper():
    rng = np.random.default_rng(0)
    odds, shares = rng.normal(size=(2, 5)), rng.uniform(size=5)
    batch = Sequences(torch.zeros(2, 0), torch.zeros(2, 0), torch.tensor([2, 5]))
    liked, disliked = odds
    others = np.exp(shares * liked**2).sum() - np.exp(shares[1] * liked[1] ** 2)
    expected = [
        np.log(others + np.exp(shares[1] * (liked[1] - 1) ** 2)),
        np.log(np.exp(shares * disliked**2).sum()),
    ]
    found = robust_loss(
        torch.from_numpy(odds), batch, torch.tensor([1.0, 0.0]).double(), torch.from_numpy(shares)
    )
    assert float(found) == pytest.approx(np.mean(expected))


def test_what_cannot_be_fitted_is_named(planted):
    with pytest.raises(ValueError, match="there is no 'bert4rec'; choose from gru4rec, caser"):
        fit_sequential("bert4rec", planted.train)
    with pytest.raises(ValueError, match="nothing to fit on"):
        fit_sequential("caser", planted.train[:0])
    with pytest.raises(ValueError, match="gru-bert needs an encoder of titles"):
        fit_sequential("gru-bert", planted.train)
