"""Workers that ask an OpenAI-compatible endpoint (vLLM's server is one) instead of loading."""

import numpy as np
import polars as pl
import pytest

from tallrec.baselines.endpoint import Client, Endpoint
from tallrec.baselines.in_context import InContextScorer
from tallrec.baselines.journal import Journal
from tallrec.data.histories import samples_of_pairs
from tallrec.data.prepared import read_prepared
from tallrec.data.samples import in_blocks
from tallrec.prompts import get_template
from tallrec.scale.cluster import ClusterOptions
from tallrec.scale.jobs import Tally
from tallrec.steps.score_on_ray import score_on_ray
from tests.baselines.endpoints import KEY_VARIABLE, llama_server


def silent(_line):
    """Says nothing."""


def job(cluster, run, table, out, endpoint):
    where = ClusterOptions(cluster.address, 1)
    return score_on_ray(
        run.path, str(table), str(out), endpoint=endpoint, buckets=3, cluster=where, say=silent
    )


@pytest.mark.slow
def test_workers_ask_what_one_process_asks(cluster, planted_run, tmp_path):
    prepared = read_prepared(planted_run.path.parent / "data")
    train = prepared.splits.train
    users = train.events["user"].cast(pl.String).unique(maintain_order=True)[:3]
    pairs = pl.DataFrame({"user": users}).join(train.catalog[:2].select("item"), how="cross")
    pairs.write_parquet(tmp_path / "pairs.parquet")
    with llama_server() as address:
        endpoint = Endpoint(
            "smollm2", f"{address}/v1", api="completions", key_variable=KEY_VARIABLE
        )
        tally = job(cluster, planted_run, tmp_path / "pairs.parquet", tmp_path / "out", endpoint)
        samples = in_blocks(samples_of_pairs(train, pairs, longest=8), 4)
        journal = Journal(tmp_path / "answers.jsonl")
        alone = InContextScorer(Client(endpoint), journal, get_template("timeline"), "movie")
        expected = pairs.with_columns(log_odds=pl.Series(alone(samples)))
    assert tally == Tally(6, 0)
    scored = pl.read_parquet(tmp_path / "out" / "scores" / "*.parquet").sort("user", "item")
    expected = expected.sort("user", "item")
    assert scored.select("user", "item").equals(expected.select("user", "item"))
    np.testing.assert_array_equal(scored["log_odds"], expected["log_odds"])


def test_an_endpoint_that_is_not_there_fails_the_buckets_soon(cluster, planted_run, tmp_path):
    pairs = pl.DataFrame({"user": [f"u{i}" for i in range(9)], "item": ["i1"] * 9})
    pairs.write_parquet(tmp_path / "pairs.parquet")
    nobody = Endpoint("none", "http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match=r"3 of 3 parts failed.*the same command goes on"):
        job(cluster, planted_run, tmp_path / "pairs.parquet", tmp_path / "out", nobody)
    assert not (tmp_path / "out" / "scores").exists()
