import json
from itertools import combinations, permutations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallrec.data.audit import audit, audit_markdown
from tallrec.types import PARTS, Samples, Splits

USERS = pl.Enum(["ann", "bob", "cy"])
ITEMS = pl.Enum(["a", "b", "c", "d"])
CATALOG = pl.DataFrame({"item": list("abcd"), "title": list("ABCD")}).with_columns(
    creator=pl.lit(None, pl.String)
)

# Ann's third event is out of order and her fourth repeats her first item.
EVENTS = [
    ("ann", "a", True, 10),
    ("ann", "b", False, 20),
    ("ann", "c", True, 15),
    ("ann", "a", False, 40),
    ("bob", "a", True, 5),
    ("bob", "b", True, 30),
    ("bob", "d", True, 35),
]
# user, start, stop, target, liked, time
TRAIN = [("ann", 0, 2, "c", True, 15), ("ann", 0, 3, "a", False, 40), ("bob", 4, 6, "d", True, 35)]
VALID = [("ann", 1, 3, "a", False, 40)]
TEST = [("bob", 4, 5, "b", True, 30)]


def splits_of(events, *parts) -> Splits:
    columns = {"user": USERS, "item": ITEMS, "liked": pl.Boolean, "timestamp": pl.Int64}
    table = pl.DataFrame(events, schema=columns, orient="row")
    table = table.with_columns(rating=pl.lit(1.0, pl.Float32))
    columns = {
        "user": USERS,
        "start": pl.Int64,
        "stop": pl.Int64,
        "target": ITEMS,
        "liked": pl.Boolean,
        "timestamp": pl.Int64,
    }
    rows = (pl.DataFrame(part, schema=columns, orient="row") for part in parts)
    return Splits(*(Samples(CATALOG, table, part) for part in rows))


@pytest.fixture(scope="module")
def found():
    return audit(splits_of(EVENTS, TRAIN, VALID, TEST))


def share(count: int, total: int) -> dict:
    return {"count": count, "share": count / total if total else None}


def test_parts(found) -> None:
    assert (found["events"], found["items"]) == (7, 4)
    assert found["parts"] == {
        "train": {"rows": 3, "users": 2, "items": 3, "like_share": 2 / 3, "mean_history": 7 / 3},
        "valid": {"rows": 1, "users": 1, "items": 1, "like_share": 0.0, "mean_history": 2.0},
        "test": {"rows": 1, "users": 1, "items": 1, "like_share": 1.0, "mean_history": 1.0},
    }


def test_overlap_is_a_share_of_the_second_part(found) -> None:
    assert found["overlap"] == {
        "train and valid": {"users": share(1, 1), "items": share(1, 1)},
        "train and test": {"users": share(1, 1), "items": share(0, 1)},
        "valid and test": {"users": share(0, 1), "items": share(0, 1)},
    }


def test_order(found) -> None:
    assert found["order"] == {
        "after_first_test": {"train": share(2, 3), "valid": share(1, 1)},
        "late_history": share(1, 10),  # b at 20 before c at 15
        "decreasing": share(1, 7),
    }


def test_duplicates(found) -> None:
    assert found["duplicates"] == {
        "events": share(1, 7),
        "rows": {
            "train and valid": share(1, 1),
            "train and test": share(0, 1),
            "valid and test": share(0, 1),
        },
        "target_in_history": share(1, 5),  # the second train row; the valid row starts behind it
    }


def test_leaks(found) -> None:
    assert found["leaks"] == {
        "train in valid": share(1, 3),
        "train in test": share(0, 3),
        "valid in train": share(0, 1),  # only Ann's earlier event with the same item is
        "valid in test": share(0, 1),
        "test in train": share(1, 1),
        "test in valid": share(0, 1),
    }


def test_warnings_say_what_to_worry_about(found) -> None:
    assert found["warnings"] == [
        "1 (100.0%) test targets stand in train histories with their answers.",
        "1 (100.0%) rows have the same user and target in train and valid.",
        "1 (20.0%) rows have their target in their own history.",
        "1 (14.3%) events repeat a user and an item.",
        "2 (66.7%) train targets are later than the first test target: the split is not by time.",
        "1 (100.0%) valid targets are later than the first test target: the split is not by time.",
        "1 (10.0%) history events are later than their own target.",
        "1 (14.3%) events are earlier than the one before them of the same user.",
        "The 1 test rows are of 1 users: intervals over users will be wide, whatever the number of "
        "rows.",
        "The test rows do not have both answers: no AUC can be computed.",
    ]


def test_nothing_to_warn_of(monkeypatch) -> None:
    monkeypatch.setattr("tallrec.data.audit.FEW_USERS", 2)
    events = [("ann", "a", True, 1), ("bob", "b", True, 2), ("cy", "c", True, 3)]
    test = [("cy", 2, 3, "d", True, 30), ("bob", 1, 2, "a", False, 30)]
    found = audit(
        splits_of(events, [("ann", 0, 1, "b", True, 10)], [("bob", 1, 2, "c", True, 20)], test)
    )
    assert found["warnings"] == []
    assert "Nothing to warn of." in audit_markdown(found)


def test_without_timestamps() -> None:
    timeless = ([(*row[:-1], None) for row in rows] for rows in (EVENTS, TRAIN, VALID, TEST))
    found = audit(splits_of(*timeless))
    assert found["order"] is None
    assert "No timestamps: nothing about time could be checked." in found["warnings"]
    assert "| order in time | no timestamps |" in audit_markdown(found)


def test_parts_may_be_empty_and_rows_unlabelled() -> None:
    found = audit(splits_of(EVENTS, TRAIN, [], [("cy", 0, 0, "d", None, 50)]))
    assert found["parts"]["valid"] == {
        "rows": 0,
        "users": 0,
        "items": 0,
        "like_share": None,
        "mean_history": None,
    }
    assert found["overlap"]["train and valid"]["users"] == share(0, 0)
    assert found["leaks"]["test in train"] == share(0, 1)
    assert (
        found["warnings"][-1] == "The test rows do not have both answers: no AUC can be computed."
    )


def test_page_and_json_hold_every_figure(found) -> None:
    assert json.loads(json.dumps(found)) == found
    page = audit_markdown(found)
    for warning in found["warnings"]:
        assert f"- {warning}\n" in page
    assert "7 events, 4 items." in page
    assert "| train | 3 | 2 | 3 | 66.7% | 2.3 |" in page
    assert "| train and valid | 1 (100.0%) | 1 (100.0%) |" in page
    assert "| history events later than their own target | 1 (10.0%) |" in page
    assert "| rows with the same user and target in train and valid | 1 (100.0%) |" in page
    assert "| test targets in train histories | 1 (100.0%) |" in page


@st.composite
def any_splits(draw) -> Splits:
    user = st.sampled_from(USERS.categories.to_list())
    item = st.sampled_from(ITEMS.categories.to_list())
    time = st.integers(0, 9)
    events = draw(st.lists(st.tuples(user, item, st.booleans(), time), min_size=1, max_size=12))
    events.sort(key=lambda event: event[0])

    bound = st.integers(0, len(events))
    spans = st.tuples(bound, bound).map(sorted)
    rows = st.tuples(st.sampled_from(events), spans, time).map(
        lambda row: (row[0][0], *row[1], *row[0][1:3], row[2])
    )
    return splits_of(events, *(draw(st.lists(rows, max_size=5)) for _ in PARTS))


@settings(deadline=None)
@given(any_splits())
def test_agrees_with_counting_sample_by_sample(splits) -> None:
    found = audit(splits)
    events = splits.train.events.select("user", "item", "timestamp").rows()
    rows = {name: part.rows.rows() for name, part in splits.parts().items()}
    shown = {
        name: {i for _, start, stop, *_ in part for i in range(start, stop)}
        for name, part in rows.items()
    }

    def target_event(row) -> int:
        own = [i for i, event in enumerate(events) if event[:2] == (row[0], row[3])]
        return row[2] if row[2] in own else own[0]

    asked = {name: {(row[0], row[3]) for row in part} for name, part in rows.items()}
    everything = [row for part in rows.values() for row in part]
    histories = [(events[start:stop], row) for row in everything for start, stop in [row[1:3]]]

    for a, b in permutations(PARTS, 2):
        leaks = sum(target_event(row) in shown[b] for row in rows[a])
        assert found["leaks"][f"{a} in {b}"]["count"] == leaks
    for a, b in combinations(PARTS, 2):
        both = sum((row[0], row[3]) in asked[a] for row in rows[b])
        assert found["duplicates"]["rows"][f"{a} and {b}"]["count"] == both
    own = sum((row[0], row[3]) in [event[:2] for event in history] for history, row in histories)
    assert found["duplicates"]["target_in_history"]["count"] == own
    late = sum(event[2] > row[5] for history, row in histories for event in history)
    assert found["order"]["late_history"]["count"] == late
    repeats = len(events) - len({event[:2] for event in events})
    assert found["duplicates"]["events"]["count"] == repeats
