"""A table is scored like the data it comes from, whatever happens on the way."""

import numpy as np
import polars as pl
import pytest

from tallrec.data.prepared import read_prepared
from tallrec.steps import score_pairs as module
from tallrec.steps.asked import score_run
from tallrec.steps.recommender import Recommender
from tallrec.steps.score_pairs import score_pairs


def silent(_line):
    """Says nothing."""


@pytest.fixture(scope="module")
def table(planted_run, tmp_path_factory):
    """The pairs of the test part, with a column that nobody knows."""
    test = read_prepared(planted_run.path.parent / "data").splits.test.rows
    path = tmp_path_factory.mktemp("tables") / "pairs.parquet"
    pairs = test.select(pl.col("user").cast(pl.String), pl.col("target").cast(pl.String))
    pairs.rename({"target": "item"}).with_row_index("mine").write_parquet(path)
    return path


@pytest.fixture(scope="module")
def scored(planted_run, table):
    """Scores of the table, in chunks of 16 rows."""
    out = table.with_name("scored.parquet")
    assert score_pairs(planted_run.path, table, out, rows=16, say=silent) == 72
    return out


def test_pairs_of_a_part_score_as_the_part_does(planted_run, table, scored, tmp_path):
    of_part = score_run(planted_run.path, tmp_path / "part.parquet", say=silent)
    result = pl.read_parquet(scored)
    assert result.columns == ["mine", "user", "item", "log_odds", "probability"]
    assert result.select("mine", "user", "item").equals(pl.read_parquet(table))
    np.testing.assert_allclose(result["log_odds"], of_part["log_odds"], atol=1e-4)
    np.testing.assert_allclose(
        result["probability"], 1 / (1 + np.exp(-result["log_odds"].to_numpy()))
    )
    assert {path.name for path in scored.parent.iterdir()} == {"pairs.parquet", "scored.parquet"}


def test_what_was_cut_off_goes_on_to_the_same_bytes(
    planted_run, table, scored, tmp_path, monkeypatch
):
    out, written = tmp_path / "out.parquet", []
    write = module.write_table

    def cut_off_later(path, part):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, part)

    monkeypatch.setattr(module, "write_table", cut_off_later)
    with pytest.raises(KeyboardInterrupt):
        score_pairs(planted_run.path, table, out, rows=16, say=silent)
    assert not out.exists()

    def count(path, part):
        written.append(path.name)
        write(path, part)

    monkeypatch.setattr(module, "write_table", count)
    score_pairs(planted_run.path, table, out, rows=16, say=silent)
    assert len(written) == len(set(written)) == 2 * 5  # seeds times chunks, none of them twice
    assert out.read_bytes() == scored.read_bytes()


def cut_off(*_arguments):
    raise KeyboardInterrupt


def test_parts_of_another_table_are_not_used(planted_run, table, scored, tmp_path, monkeypatch):
    out = tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_assemble", cut_off)
        with pytest.raises(KeyboardInterrupt):
            score_pairs(planted_run.path, table, out, rows=16, say=silent)
    other = tmp_path / "other.parquet"
    pl.read_parquet(table).reverse().write_parquet(other)
    score_pairs(planted_run.path, other, out, rows=16, say=silent)
    mirrored = pl.read_parquet(out).sort("mine")["log_odds"]
    np.testing.assert_allclose(mirrored, pl.read_parquet(scored)["log_odds"], atol=1e-4)


def test_histories_of_the_table_count_instead_of_those_of_the_data(planted_run, tmp_path):
    history = [("i1", True), ("i2", False), ("i4", True)]
    events = [{"item": item, "liked": liked} for item, liked in history]
    table = pl.DataFrame({"item": ["i9", "i8"], "history": [events, events[:1]]})
    table.write_parquet(tmp_path / "in.parquet")
    score_pairs(planted_run.path, tmp_path / "in.parquet", tmp_path / "out.parquet", say=silent)
    seeds = [Recommender.load(planted_run.path, seed=seed, say=silent) for seed in (0, 1)]
    expected = [
        np.mean([seed.score(asked, [item]) for seed in seeds])
        for item, asked in (("i9", history), ("i8", history[:1]))
    ]
    result = pl.read_parquet(tmp_path / "out.parquet")["log_odds"]
    np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item": ["i1"]}, "needs a column item and one of user and history; it has item"),
        ({"user": ["u1"], "item": ["i1"], "log_odds": [0.0]}, "has a column log_odds already"),
        ({"user": [1.5], "item": ["i1"]}, "user must be text or whole numbers, not Float64"),
        ({"user": ["u1", "u1"], "item": ["i1", "x"]}, "row 1: there is no item 'x' in the data"),
        ({"user": ["u1", None], "item": ["i1", "i1"]}, "row 1: there is no user None"),
        ({"user": ["u1", "w"], "item": ["i1", "i1"]}, "row 1: user 'w' has no interactions here"),
        ({"item": ["i1"], "history": ["i2, i3"]}, "history must be a list of structs"),
        (
            {"item": ["i1"], "history": [[{"item": "x", "liked": True}]]},
            "rows 0 to 0: there is no item 'x'",
        ),
    ],
)
def test_a_table_that_is_not_right_is_refused(planted_run, tmp_path, columns, message):
    path = tmp_path / "in.parquet"
    pl.DataFrame(columns).write_parquet(path)
    with pytest.raises(ValueError, match=message):
        score_pairs(planted_run.path, path, tmp_path / "out.parquet", say=silent)
    assert not (tmp_path / "out.parquet").exists()


def test_what_is_no_table_is_refused(planted_run, tmp_path):
    (tmp_path / "in.parquet").write_text("user,item", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a Parquet file that can be read"):
        score_pairs(planted_run.path, tmp_path / "in.parquet", tmp_path / "out", say=silent)
