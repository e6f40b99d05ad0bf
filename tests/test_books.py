"""Book-Crossing from its dump to a prepared folder, in the paper's way and in the ordinary one."""

import json

import polars as pl
import pytest

from tallrec.data.prepared import read_prepared
from tallrec.recipe_files import load_recipe
from tallrec.steps.check import check_data
from tallrec.steps.data import load_dataset, prepare, prepare_recipe
from tests.data.interactions import dataset, diary

USERS, BOOKS = 20, 6


def silent(_line):
    """Says nothing."""


def rating(user, book):
    """From 0, unrated, to 9."""
    return (3 * user + 7 * book) % 10


@pytest.fixture
def dump(tmp_path):
    folder = tmp_path / "dump"
    folder.mkdir()
    books = [f'"b{b}";"Book {b}";"Author {b}"' for b in range(BOOKS)]
    ratings = [f'"u{u}";"b{b}";"{rating(u, b)}"' for b in range(BOOKS) for u in range(USERS)]
    for name, head, rows in (
        ("BX-Books.csv", '"ISBN";"Book-Title";"Book-Author"', books),
        ("BX-Book-Ratings.csv", '"User-ID";"ISBN";"Book-Rating"', ratings),
    ):
        (folder / name).write_text("\n".join([head, *rows]) + "\n", encoding="latin-1")
    return folder


def prepared(dump, **options):
    folder = dump.parent / "prepared"
    prepare(load_dataset("book-crossing", source=dump), folder, **options)
    return read_prepared(folder)


def test_the_papers_rule_for_books(dump):
    data = prepared(dump, split="paper")
    assert [len(part) for part in data.splits.parts().values()] == [16, 2, 2]
    users = [s.user for part in data.splits.parts().values() for s in part]
    assert sorted(users) == sorted(f"u{u}" for u in range(USERS))  # one row each, in one part
    for sample in (s for part in data.splits.parts().values() for s in part):
        events = [*sample.history, (sample.target, sample.liked)]
        assert sorted(item.id for item, _ in events) == [f"b{b}" for b in range(BOOKS)]
        for item, liked in events:
            assert liked == (rating(int(sample.user[1:]), int(item.id[1:])) > 5)
    assert (data.info.min_history, data.info.like_above, data.info.implicit) == (3, 5.0, True)


def test_the_seed_draws_other_targets_and_other_users(dump):
    whole = load_dataset("book-crossing", source=dump)
    parts = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare(whole, dump / folder, split="paper", seed=seed)
        splits = read_prepared(dump / folder).splits
        parts.append([(s.user, s.target.id) for s in splits.train])
    assert parts[0] == parts[1]
    assert {user for user, _ in parts[0]} != {user for user, _ in parts[2]}
    targets = [dict(part) for part in (parts[0], parts[2])]
    assert any(targets[0][user] != targets[1][user] for user in targets[0].keys() & targets[1])


def test_other_splits_leave_unrated_books_out(dump):
    data = prepared(dump, split="users", history=3)
    assert data.splits.train.events["rating"].min() > 0
    assert (data.info.like_above, data.info.implicit) == (5.0, False)
    rows = (s for part in data.splits.parts().values() for s in part)
    sample = next(s for s in rows if s.user == "u1")
    rated = [b for b in range(BOOKS) if rating(1, b)]  # of the user, in the order of the file
    assert [item.id for item, _ in sample.history] == [f"b{b}" for b in rated[:3]]


@pytest.mark.parametrize(("split", "implicit"), [("paper", False), ("users", True)])
def test_unrated_books_can_be_kept_or_left_out_with_any_split(dump, split, implicit):
    data = prepared(dump, split=split, history=3, implicit=implicit, like_above=7)
    assert (data.splits.train.events["rating"].min() == 0) == implicit
    assert (data.info.like_above, data.info.implicit) == (7, implicit)


def test_data_with_a_rating_in_every_row_has_nothing_implicit(tmp_path):
    with pytest.raises(ValueError, match="--implicit and --explicit are for data with unrated"):
        prepare(dataset(*diary("u", 12)), tmp_path / "out", split="users", implicit=True)


def test_the_dump_cannot_be_fetched():
    with pytest.raises(ValueError, match=r"book-crossing cannot be fetched.*\(--source, data\.so"):
        load_dataset("book-crossing")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((), "there is no folder or zip file data/book-crossing"),
        (("data.source=nowhere.zip",), "there is no folder or zip file nowhere.zip"),
    ],
)
def test_a_recipe_without_the_dump_is_refused_before_anything_is_written(settings, message):
    with pytest.raises(ValueError, match=message):
        check_data(load_recipe("paper-book", settings))


def test_the_recipe_of_the_papers_books_prepares_the_dump(dump):
    recipe = load_recipe("paper-book", (f"data.source={dump}",))
    check_data(recipe)
    folder = prepare_recipe(recipe.data, dump.parent / "made", say=silent)
    info = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
    assert (info["dataset"], info["split"], info["implicit"]) == ("book-crossing", "paper", True)
    assert pl.read_parquet(folder / "train.parquet").height == 16
