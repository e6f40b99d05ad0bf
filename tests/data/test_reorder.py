import numpy as np

from tallrec.data.samples import reorder
from tests.planted import planted_splits


def events(sample):
    shown = (*sample.history, (sample.target, sample.liked))
    return sorted((item.id, like) for item, like in shown)


def test_the_first_pass_shows_samples_as_they_are():
    samples = planted_splits().train[:5]
    shown = reorder(samples, 3, seed=0)
    assert shown[:5] == list(samples)
    assert len(shown) == 15


def test_other_passes_keep_each_samples_events_and_answers():
    samples = planted_splits().train[:5]
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
