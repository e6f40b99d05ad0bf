"""Interactions prepared on a real cluster: the samples and parts of the one-machine path."""

import numpy as np
import polars as pl
import pytest

from tallrec.data.prepared import read_prepared
from tallrec.data.table import read_table
from tallrec.scale.cluster import ClusterOptions
from tallrec.scale.jobs import Tally
from tallrec.steps.data import prepare
from tallrec.steps.prepare_on_ray import prepare_on_ray
from tallrec.types import PARTS

BUCKETS = 5
RULE = {"history": 4, "min_history": 2, "like_above": 3.0}


def silent(_line):
    """Says nothing."""


def interactions(rows=900, users=60, items=40):
    """Unevenly many for each user, in no order, with the titles of the items."""
    rng = np.random.default_rng(0)
    item = rng.integers(items, size=rows)
    return pl.DataFrame(
        {
            "who": (rng.random(rows) ** 2 * users).astype(int),
            "item": item,
            "rating": rng.integers(1, 6, size=rows).astype(float),
            "timestamp": rng.integers(10_000, 12_000, size=rows),
            "title": [f"Item of number {i}" for i in item],
        }
    )


def samples_of(folders):
    """The samples of each part, in an order of their own."""
    prepared = [read_prepared(folder).splits.parts() for folder in folders]
    return {part: sorted(map(repr, (s for one in prepared for s in one[part]))) for part in PARTS}


def prepared_here(table, out, split, **options):
    dataset = read_table(table, columns={"user": "who"}, **options)
    prepare(dataset, out, split=split, seed=3, **RULE)
    return samples_of([out])


def prepared_there(cluster, table, out, split, **options):
    tally = prepare_on_ray(
        table.as_uri(),
        out.as_uri(),
        split=split,
        columns={"user": "who"},
        seed=3,
        buckets=BUCKETS,
        cluster=ClusterOptions(cluster.address, 2),
        say=silent,
        **RULE,
        **options,
    )
    folders = sorted(out.glob("bucket-*"))
    assert len(folders) == BUCKETS
    return tally, samples_of(folders)


def test_a_cluster_makes_the_samples_of_one_machine_split_by_users(cluster, tmp_path):
    rows = interactions()
    rows.write_parquet(tmp_path / "whole.parquet")
    (tmp_path / "in").mkdir()
    poison = rows[:1].with_columns(rating=pl.lit(float("nan")))
    pl.concat([rows[:400], poison]).write_parquet(tmp_path / "in" / "a.parquet")
    rows[400:].write_parquet(tmp_path / "in" / "b.parquet")
    here = prepared_here(tmp_path / "whole.parquet", tmp_path / "here", "users")
    tally, there = prepared_there(cluster, tmp_path / "in", tmp_path / "there", "users")
    assert there == here
    assert tally == Tally(sum(map(len, here.values())), 1)
    catalogs = [pl.read_parquet(tmp_path / n / "catalog.parquet") for n in ("here", "there")]
    assert catalogs[0].equals(catalogs[1])
    (reason,) = pl.read_parquet(tmp_path / "there" / "set-aside" / "*.parquet")["reason"]
    assert "column 'rating': nan is not a finite number" in reason
    with pytest.raises(ValueError, match=r"is in buckets: give one of them"):
        read_prepared(tmp_path / "there")


def test_a_cluster_makes_the_samples_of_one_machine_split_by_time(cluster, tmp_path):
    rows = interactions()
    rows.drop("title").write_parquet(tmp_path / "whole.parquet")
    rows.select("item", "title").unique("item").write_csv(tmp_path / "items.csv")
    items = tmp_path / "items.csv"
    here = prepared_here(tmp_path / "whole.parquet", tmp_path / "here", "time", items=items)
    _, there = prepared_there(
        cluster, tmp_path / "whole.parquet", tmp_path / "there", "time", items=str(items)
    )
    assert there == here


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "paper"}, "on Ray, split must be one of users, time"),
        ({"min_history": 11}, "min_history between 0 and history"),
        ({"columns": {"user": "x"}}, r"no column 'x' \(--user\)"),
        ({"table": "nothing/*.parquet"}, "there is no Parquet file at nothing"),
        ({"table": "nosuch://place"}, "nosuch://place cannot be opened"),
    ],
)
def test_what_cannot_be_prepared_is_refused_before_anything_starts(tmp_path, options, message):
    interactions().write_parquet(tmp_path / "in.parquet")
    options = {"table": str(tmp_path / "in.parquet"), "columns": {"user": "who"}} | options
    with pytest.raises(ValueError, match=message):
        prepare_on_ray(options.pop("table"), str(tmp_path / "out"), **options)
