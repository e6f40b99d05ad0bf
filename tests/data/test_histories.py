"""Histories from outside a split become questions like those of the data."""

import polars as pl
import pytest

from tallrec.data.histories import (
    history_of,
    samples_of_histories,
    samples_of_pairs,
    samples_of_questions,
    samples_of_table,
)
from tallrec.data.samples import build_samples, in_blocks
from tallrec.types import Item, Sample
from tests.data.interactions import dataset, diary

SAMPLES = build_samples(dataset(*diary("u", 7), *diary("v", 4)), history=2)
SHORT = [("i2", True), ("i0", False)]


def summary(samples):
    return [
        ([(item.id, liked) for item, liked in s.history], s.target.id, s.liked) for s in samples
    ]


def asked(histories, items, longest=3):
    return summary(samples_of_histories(SAMPLES.catalog, histories, items, longest=longest))


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


class TestTable:
    def ask(self, histories, items):
        events = [
            None if history is None else [{"item": i, "liked": liked} for i, liked in history]
            for history in histories
        ]
        schema = {"item": pl.String, "history": pl.List(pl.Struct({"item": str, "liked": bool}))}
        table = pl.DataFrame({"item": items, "history": events}, schema=schema)
        return summary(samples_of_table(SAMPLES.catalog, table, longest=2))

    def test_each_row_has_its_own_history(self):
        long = history_of(SAMPLES, "v")
        assert self.ask([SHORT, None, long, []], ["i6", "i1", "i5", "i2"]) == [
            (SHORT, "i6", None),
            ([], "i1", None),
            (long[-2:], "i5", None),
            ([], "i2", None),
        ]

    def test_an_item_of_its_own_history_is_refused(self):
        with pytest.raises(ValueError, match="item 'i0' is asked about and in its history"):
            self.ask([SHORT, SHORT], ["i1", "i0"])

    def test_an_unknown_item_of_a_history_is_named(self):
        with pytest.raises(ValueError, match="no item 'x' in the catalogue"):
            self.ask([[("x", True)]], ["i1"])


def test_a_pair_has_the_history_before_its_item_or_all_of_it():
    pairs = pl.DataFrame({"user": ["v", "u", "v", "v"], "item": ["i6", "i4", "i2", "i0"]})
    u, v = (history_of(SAMPLES, user) for user in "uv")
    asked = samples_of_pairs(SAMPLES, pairs, longest=3)
    assert [sample.user for sample in asked] == ["v", "u", "v", "v"]
    assert summary(asked) == [
        (v[1:], "i6", None),
        (u[1:4], "i4", None),
        (v[:2], "i2", None),
        ([], "i0", None),
    ]
    with pytest.raises(ValueError, match="user 'w' has no interactions here"):
        samples_of_pairs(SAMPLES, pairs.with_columns(user=pl.lit("w")), longest=3)


def test_questions_with_items_of_no_catalogue():
    known = Item("a", "Known")
    shared = ((known, True), (Item("", "Somewhere else"), False))
    catalog = pl.DataFrame({"item": ["a", "b"], "title": ["Known", "Other"], "creator": [None] * 2})
    catalog = catalog.cast({"creator": pl.String})
    other = Item("b", "Other")
    alone = Sample("", (), known)
    questions = [Sample("", shared, other), alone, Sample("", shared, Item("", "New", "Someone"))]
    samples = samples_of_questions(catalog, questions, longest=10)
    shown = [
        ([(i.title, liked) for i, liked in s.history], s.target.title, s.target.creator)
        for s in samples
    ]
    both = [("Known", True), ("Somewhere else", False)]
    assert shown == [(both, "Other", None), ([], "Known", None), (both, "New", "Someone")]
    assert samples.events.height == 2
    assert samples.catalog["item"].is_unique().all()
    assert samples_of_questions(catalog, [alone], longest=10).catalog is catalog
    (latest,) = samples_of_questions(catalog, questions[:1], longest=1)
    assert [item.title for item, _ in latest.history] == ["Somewhere else"]
