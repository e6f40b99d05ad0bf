"""Which samples are drawn, and in which orders they are shown."""

from collections import Counter

import numpy as np
import pytest

from tallrec.data.shots import STRATIFY, draw_shots, reorder
from tests.planted import planted_splits

PLANTED = planted_splits().train
KEYS = PLANTED.rows.select("user", "target").rows()


def keys(samples):
    return samples.rows.select("user", "target").rows()


def events(sample):
    shown = (*sample.history, (sample.target, sample.liked))
    return sorted((item.id, like) for item, like in shown)


def test_the_first_pass_shows_samples_as_they_are():
    samples = PLANTED[:5]
    shown = reorder(samples, 3, seed=0)
    assert shown[:5] == list(samples)
    assert len(shown) == 15


def test_other_passes_keep_each_samples_events_and_answers():
    samples = PLANTED[:5]
    shown = reorder(samples, 4, seed=0)
    for again in (shown[5:10], shown[10:15], shown[15:]):
        assert [events(sample) for sample in again] == [events(sample) for sample in samples]
        assert [sample.user for sample in again] == [sample.user for sample in samples]
    targets = {shown[i].target.id for i in range(0, 20, 5)}
    assert len(targets) > 1


def test_orders_are_seeded():
    samples = planted_splits().train[np.arange(5)]
    assert reorder(samples, 3, seed=1) == reorder(samples, 3, seed=1)
    assert reorder(samples, 3, seed=1) != reorder(samples, 3, seed=2)


@pytest.mark.parametrize("stratify", STRATIFY)
@pytest.mark.parametrize("k", [1, 16, 64, len(PLANTED)])
def test_shots_are_drawn_once_each_and_again_with_the_same_seed(stratify, k):
    drawn = keys(draw_shots(PLANTED, k, seed=3, stratify=stratify))
    assert len(set(drawn)) == len(drawn) == k
    assert set(drawn) <= set(KEYS)
    assert keys(draw_shots(PLANTED, k, seed=3, stratify=stratify)) == drawn
    assert keys(draw_shots(PLANTED, k, seed=4, stratify=stratify)) != drawn


def test_more_shots_begin_with_fewer():
    few, many = (keys(draw_shots(PLANTED, k, seed=0)) for k in (16, 64))
    assert many[:16] == few


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 7, 16, 100])
def test_stratified_by_label_keeps_the_share_of_likes(seed, k):
    skewed = PLANTED[np.flatnonzero(PLANTED.labels | (np.arange(len(PLANTED)) % 5 == 0))]
    shots = draw_shots(skewed, k, seed=seed, stratify="label")
    assert abs(shots.labels.sum() - k * skewed.labels.mean()) <= 0.5


def test_stratified_by_label_takes_all_there_is():
    shots = draw_shots(PLANTED, len(PLANTED), seed=0, stratify="label")
    assert sorted(keys(shots)) == sorted(KEYS)


@pytest.mark.parametrize("k", [5, 30, 45])
def test_stratified_by_user_spreads_over_the_users(k):
    counts = Counter(draw_shots(PLANTED, k, seed=0, stratify="user").users.tolist())
    assert len(counts) == min(k, 30)
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("k", [0, -1, len(PLANTED) + 1])
def test_a_number_of_shots_that_is_not_there(k):
    with pytest.raises(ValueError, match=f"between 1 and the 360 training rows; got {k}"):
        draw_shots(PLANTED, k, seed=0)


def test_an_unknown_stratification():
    with pytest.raises(ValueError, match="one of none, label, user; got 'age'"):
        draw_shots(PLANTED, 4, seed=0, stratify="age")
