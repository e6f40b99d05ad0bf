"""Tables scored on a real cluster: as on one machine, whatever is lost on the way."""

import json
import threading
import time

import numpy as np
import polars as pl
import psutil
import pytest
from typer.testing import CliRunner

from tallrec.cli import app
from tallrec.data.prepared import read_prepared
from tallrec.scale.cluster import ClusterOptions
from tallrec.scale.jobs import Tally
from tallrec.steps.prepare_on_ray import prepare_on_ray
from tallrec.steps.score_on_ray import score_on_ray
from tallrec.steps.score_pairs import score_pairs
from tests.scale.conftest import MEMORY

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


def score(cluster, run, table, out, workers=1, **options):
    options = {"buckets": BUCKETS, "say": silent} | options
    where = ClusterOptions(cluster.address, workers)
    return score_on_ray(run.path, table.as_uri(), out.as_uri(), cluster=where, **options)


def check_same(out, expected):
    scored = pl.read_parquet(out / "scores" / "*.parquet")
    assert scored.columns == expected.columns
    scored, expected = scored.sort("mine"), expected.sort("mine")
    assert scored.drop("log_odds", "probability").equals(expected.drop("log_odds", "probability"))
    for column in ("log_odds", "probability"):
        np.testing.assert_allclose(scored[column], expected[column], rtol=0, atol=1e-5)


def workers():
    """The processes of actors that are on this machine."""
    found = psutil.process_iter(["cmdline"])
    return [p for p in found if (p.info["cmdline"] or [""])[0].startswith("ray::Worker")]


def after_buckets(number, out, act):
    """Acts once so many buckets are done, while others are being worked on."""

    def watch():
        while not (out / "done").exists() or len(list((out / "done").iterdir())) < number:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_killed_actor_and_a_lost_node_cost_no_score(
    cluster, planted_run, table, expected, tmp_path
):
    out, said = tmp_path / "out", []

    def kill():
        workers()[0].kill()

    def remove():
        cluster.remove_node(list(cluster.worker_nodes)[-1])

    threads = [after_buckets(1, out, kill), after_buckets(12, out, remove)]
    tally = score(cluster, planted_run, table, out, 2, buckets=36, say=said.append)
    for thread in threads:
        thread.join()
    cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    assert tally == Tally(expected.height, 0)
    assert sum("Lost a worker" in line for line in said) >= 2
    check_same(out, expected)


def test_a_cluster_scores_as_one_machine_does_and_sets_poisoned_rows_aside(
    cluster, planted_run, table, expected, tmp_path
):
    poison = pl.DataFrame({"user": ["u1", "nobody", None], "item": ["nothing", "i1", "i1"]})
    rows = pl.concat([pl.read_parquet(table / "*.parquet"), poison], how="diagonal")
    rows.write_parquet(tmp_path / "poisoned.parquet")
    out = tmp_path / "out"
    tally = score(cluster, planted_run, tmp_path / "poisoned.parquet", out)
    assert tally == Tally(expected.height, 3)
    check_same(out, expected)
    kept = {"scores", "set-aside", "done", "job.json", "finished.json"}
    assert {path.name for path in out.iterdir()} == kept
    buckets = [pl.read_parquet(file)["user"] for file in (out / "scores").iterdir()]
    assert len(buckets) == BUCKETS
    assert sum(users.n_unique() for users in buckets) == expected["user"].n_unique()
    for users in buckets:  # candidates of one user stand together
        assert users.rle().struct.field("value").is_unique().all()
    aside = pl.read_parquet(out / "set-aside" / "*.parquet").sort("reason")
    assert aside["reason"].to_list() == [
        "there is no item nothing in the data",
        "there is no user (none) in the data",
        "there is no user nobody in the data",
    ]
    does_what_is_missing(cluster, planted_run, tmp_path, out, tally)


def does_what_is_missing(cluster, planted_run, tmp_path, out, tally):
    """A second call writes the one bucket that is not there, to the same bytes."""
    scores = {file.name: file for file in (out / "scores").iterdir()}
    removed = sorted(scores)[0]
    before = {name: (file.read_bytes(), file.stat().st_mtime_ns) for name, file in scores.items()}
    scores[removed].unlink()
    (out / "done" / removed.replace("parquet", "json")).unlink()
    assert score(cluster, planted_run, tmp_path / "poisoned.parquet", out) == tally
    for name, file in scores.items():
        content, written = before[name]
        assert file.read_bytes() == content
        assert (file.stat().st_mtime_ns == written) == (name != removed)


def test_data_in_buckets_is_read_bucket_by_bucket(cluster, planted_run, table, expected, tmp_path):
    train = read_prepared(planted_run.path.parent / "data").splits.train
    train.events.drop("liked").write_parquet(tmp_path / "events.parquet")
    train.catalog.write_csv(tmp_path / "items.csv")
    prepare_on_ray(
        str(tmp_path / "events.parquet"),
        str(tmp_path / "data"),
        history=8,
        items=str(tmp_path / "items.csv"),
        domain="movie",
        buckets=3,
        cluster=ClusterOptions(cluster.address, 1),
        say=silent,
    )
    out = tmp_path / "out"
    score(cluster, planted_run, table, out, data=str(tmp_path / "data"))
    assert len(list((out / "scores").iterdir())) == 3  # the data's, whatever was asked for
    check_same(out, expected)


def test_a_row_that_the_samples_refuse_costs_only_itself(cluster, planted_run, tmp_path):
    history = [{"item": f"i{i}", "liked": i % 2 == 0} for i in range(8)]
    items = [f"i{i}" for i in range(9, 20)]
    good = pl.DataFrame({"item": items, "history": [history] * len(items)})
    bad = pl.DataFrame({"item": ["i3"], "history": [history]})
    good.write_parquet(tmp_path / "good.parquet")
    pl.concat([good[:4], bad, good[4:]]).write_parquet(tmp_path / "in.parquet")
    out = tmp_path / "out"
    words = ["score", planted_run.path, "--table", tmp_path / "in.parquet", "--out", out]
    words += ["--engine", "ray", "--address", cluster.address, "--buckets", 2, "--workers", 1]
    ended = CliRunner().invoke(app, list(map(str, words)))
    assert ended.exit_code == 3
    assert "11 scores written to" in ended.stderr
    assert "1 rows were set aside, with the reason, in" in ended.stderr
    (reason,) = pl.read_parquet(out / "set-aside" / "*.parquet")["reason"]
    assert reason == "item 'i3' is asked about and in its history: it is answered"
    score_pairs(planted_run.path, tmp_path / "good.parquet", tmp_path / "good", say=silent)
    scored = pl.read_parquet(out / "scores" / "*.parquet")
    alone = pl.read_parquet(tmp_path / "good")
    assert scored["item"].equals(alone["item"])
    np.testing.assert_allclose(scored["log_odds"], alone["log_odds"], rtol=0, atol=1e-5)


def test_a_folder_of_other_scores_is_refused(cluster, planted_run, table, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "job.json").write_text(json.dumps({"table": {}}), encoding="utf-8")
    with pytest.raises(ValueError, match="was begun with another data"):
        score(cluster, planted_run, table, tmp_path / "out")
