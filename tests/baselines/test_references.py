"""The full-data references keep what every scorer promises, and learn without seeing answers."""

import sys
from dataclasses import replace
from typing import get_args

import implicit.utils
import numpy as np
import polars as pl
import pytest
from threadpoolctl import threadpool_limits

from tallrec.baselines.matrices import item_shares, target_columns, user_matrix
from tallrec.baselines.references import (
    REFERENCES,
    out_of_fold,
    read_counts,
    read_factors,
    read_neighbours,
)
from tallrec.baselines.trivial import fit_item_mean, like_rate
from tallrec.recipe import Reference
from tallrec.steps.check import NEED_IMPLICIT
from tests.baselines.contract import ScorerContract, with_empty_histories, with_unseen_targets
from tests.planted import planted_splits

PERSONAL = ("item-knn", "matrix-factorization")
LEARNED = (*PERSONAL, "gradient-boosting")


class TestPersonalReferences(ScorerContract):
    personalises = True

    @pytest.fixture(scope="class", params=PERSONAL)
    @classmethod
    def scorer(cls, planted, request):
        return REFERENCES[request.param](planted.train)


class TestCountingReferences(ScorerContract):
    @pytest.fixture(scope="class", params=[name for name in REFERENCES if name not in PERSONAL])
    @classmethod
    def scorer(cls, planted, request):
        return REFERENCES[request.param](planted.train)


@pytest.fixture(scope="module")
def planted():
    return planted_splits()


@pytest.mark.parametrize("read", [read_neighbours, read_factors, read_counts])
def test_answers_of_a_user_stay_out_of_that_users_features(planted, read):
    mine = planted.train.users == planted.train.users[0]
    flipped = planted.train.rows.with_columns(liked=pl.col("liked") ^ pl.Series(mine))
    before = out_of_fold(read, planted.train)
    after = out_of_fold(read, replace(planted.train, rows=flipped))
    np.testing.assert_array_equal(after[mine], before[mine])
    assert not np.array_equal(after[~mine], before[~mine])


@pytest.mark.parametrize("name", LEARNED)
def test_nothing_is_learned_from_coin_tosses(name):
    """A model whose features had held its own answers would be sure of every new one."""
    splits = planted_splits(users=24, items=100)
    tosses = pl.Series("liked", np.random.default_rng(0).random(splits.train.events.height) < 0.5)
    events = splits.train.events.with_columns(liked=tosses)
    answers = tosses[splits.train.spans[:, 1]]
    tossed = replace(splits.train, events=events, rows=splits.train.rows.with_columns(answers))
    scores = REFERENCES[name](tossed)(splits.test)
    assert np.abs(scores).mean() < 0.45


@pytest.mark.parametrize("name", PERSONAL)
def test_what_is_unknown_leaves_the_score_to_what_is_known(planted, name):
    fitted = planted.train[:150]  # of few users, so that the items' means differ
    scorer = REFERENCES[name](fitted)
    unseen, empty = with_unseen_targets(planted.test), with_empty_histories(planted.test)
    for asked, known in ((unseen, like_rate), (empty, fit_item_mean(fitted))):
        pairs = np.column_stack([known(asked), scorer(asked)]).round(6)
        assert 1 < len(np.unique(pairs[:, 0])) == len(np.unique(pairs, axis=0))


@pytest.mark.parametrize("name", LEARNED)
def test_every_sample_has_a_score(planted, name):
    scorer = REFERENCES[name](planted.train)
    renamed = planted.test.catalog.with_columns(item="new " + planted.test.catalog["item"])
    for asked in (
        with_unseen_targets(planted.test),
        with_empty_histories(planted.test),
        replace(planted.test, catalog=renamed),
    ):
        assert np.isfinite(scorer(asked)).all()


def test_recipes_know_every_reference():
    assert get_args(Reference) == tuple(REFERENCES)
    assert PERSONAL == NEED_IMPLICIT


def test_item_shares_are_item_means(planted):
    shares = item_shares(user_matrix(planted.train))
    shares = shares[target_columns(planted.test, planted.train.catalog)]
    expected = fit_item_mean(planted.train)(planted.test)
    np.testing.assert_allclose(np.log(shares / (1 - shares)), expected)


@pytest.mark.parametrize("name", LEARNED)
def test_too_little_to_learn_from_is_named(planted, name):
    one_user = planted.train[:12]
    with pytest.raises(ValueError, match="at least two users"):
        REFERENCES[name](one_user)
    with pytest.raises(ValueError, match="both likes and dislikes"):
        REFERENCES[name](planted.train[np.flatnonzero(planted.train.labels)])


@pytest.mark.parametrize("name", PERSONAL)
def test_a_missing_package_is_named(planted, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "implicit.nearest_neighbours", None)
    with pytest.raises(ValueError, match=r"pip install 'tallrec\[references\]'"):
        REFERENCES[name](planted.train)


def test_fitting_says_nothing(planted, capfd, recwarn, monkeypatch):
    monkeypatch.setattr(implicit.utils, "_checked_blas_config", False)  # it warns but once
    with threadpool_limits(2, "blas"):
        for name in LEARNED:
            REFERENCES[name](planted.train)(planted.test)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
