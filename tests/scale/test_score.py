"""Tables scored on a real cluster: as on one machine, whatever is lost on the way."""

import json
import os
import threading
import time

import numpy as np
import polars as pl
import psutil
import pytest

from tallrec.data.prepared import read_prepared
from tallrec.scale.cluster import ClusterOptions
from tallrec.scale.jobs import Tally
from tallrec.steps.score_on_ray import score_on_ray
from tallrec.steps.score_pairs import score_pairs

BUCKETS = 6


def silent(_line):
    """Says nothing."""


def candidates(run):
    """All pairs of the data's users and items, users mixed."""
    train = read_prepared(run.path.parent / "data").splits.train
    users = train.events["user"].cast(pl.String).unique(maintain_order=True)
    pairs = pl.DataFrame({"user": users}).join(train.catalog.select("item"), how="cross")
    return pairs.sample(fraction=1, shuffle=True, seed=0).with_row_index("mine")


@pytest.fixture(scope="module")
def table(planted_run, tmp_path_factory):
    """Two files, so that users are in both."""
    folder = tmp_path_factory.mktemp("tables") / "pairs"
    folder.mkdir()
    pairs = candidates(planted_run)
    pairs[:300].write_parquet(folder / "a.parquet")
    pairs[300:].write_parquet(folder / "b.parquet")
    return folder


@pytest.fixture(scope="module")
def expected(planted_run, table):
    """The scores of the one-machine path."""
    whole = table.parent / "whole.parquet"
    pl.read_parquet(table / "*.parquet").write_parquet(whole)
    score_pairs(planted_run.path, whole, table.parent / "expected.parquet", say=silent)
    return pl.read_parquet(table.parent / "expected.parquet")


def score(cluster, run, table, out, **options):
    options = {"buckets": BUCKETS, "say": silent} | options
    where = ClusterOptions(cluster.address, 2)
    return score_on_ray(run.path, table.as_uri(), out.as_uri(), cluster=where, **options)


def check_same(out, expected, files=BUCKETS):
    assert len(list((out / "scores").iterdir())) == files
    scored = pl.read_parquet(out / "scores" / "*.parquet")
    assert scored.columns == expected.columns
    scored, expected = scored.sort("mine"), expected.sort("mine")
    assert scored.drop("log_odds", "probability").equals(expected.drop("log_odds", "probability"))
    for column in ("log_odds", "probability"):
        np.testing.assert_allclose(scored[column], expected[column], rtol=0, atol=1e-5)


def test_a_cluster_scores_as_one_machine_does(cluster, planted_run, table, expected, tmp_path):
    out = tmp_path / "out"
    assert score(cluster, planted_run, table, out) == Tally(expected.height, 0)
    check_same(out, expected)
    assert {path.name for path in out.iterdir()} == {
        "scores",
        "done",
        "job.json",
        "finished.json",
    }
    buckets = [pl.read_parquet(file)["user"] for file in (out / "scores").iterdir()]
    assert sum(users.n_unique() for users in buckets) == expected["user"].n_unique()
    for users in buckets:  # candidates of one user stand together
        assert users.rle().struct.field("value").is_unique().all()
