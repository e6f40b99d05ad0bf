"""Histories from outside a split become questions like those of the data."""

import pytest

from tallrec.data.histories import history_of, samples_of_histories
from tallrec.data.samples import build_samples, in_blocks
from tests.data.interactions import dataset, diary

SAMPLES = build_samples(dataset(*diary("u", 7), *diary("v", 4)), history=2)
SHORT = [("i2", True), ("i0", False)]


def asked(histories, items, longest=3):
    return [
        ([(item.id, liked) for item, liked in s.history], s.target.id, s.liked)
        for s in samples_of_histories(SAMPLES.catalog, histories, items, longest=longest)
    ]


def test_the_history_of_a_user_is_all_of_it_oldest_first():
    assert history_of(SAMPLES, "v") == [(f"i{i}", bool(i % 2)) for i in range(4)]
    with pytest.raises(ValueError, match=r"user 'w' has no interactions here.* 'u', 'v'"):
        history_of(SAMPLES, "w")


def test_every_item_is_asked_after_the_latest_of_every_history():
    long = history_of(SAMPLES, "u")
    assert asked([long, SHORT], ["i6", "i1"]) == [
        (long[-3:], "i6", None),
        (long[-3:], "i1", None),
        (SHORT, "i6", None),
        (SHORT, "i1", None),
    ]


def test_a_history_may_be_empty():
    assert asked([[], SHORT], ["i1"]) == [([], "i1", None), (SHORT, "i1", None)]


@pytest.mark.parametrize("block", [1, 3])
def test_a_users_history_begins_where_it_does_in_the_data(block):
    questions = samples_of_histories(
        SAMPLES.catalog, [SHORT, history_of(SAMPLES, "u")], ["i1"], longest=2
    )
    spans = in_blocks(questions, block).spans - len(SHORT)
    assert spans[1].tolist() == [5 // block * block, 7]


def test_an_unknown_item_is_named():
    with pytest.raises(ValueError, match="no item 'x9' in the catalogue; items look like 'i0'"):
        asked([SHORT], ["i1", "x9"])
