"""Scores of tables of any size on a Ray cluster, bucket by bucket; see `tallrec.scale`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import polars as pl

from tallrec.baselines.endpoint import Endpoint
from tallrec.data.prepared import BUCKETS, read_prepared
from tallrec.scale.buckets import KEY
from tallrec.scale.cluster import ClusterOptions, connected
from tallrec.scale.jobs import Tally, begin, finish, missing_in, scatter_all, work_off
from tallrec.scale.storage import Store, fetched, parquet_files
from tallrec.scale.workers import Workers
from tallrec.steps.asked import Asked
from tallrec.steps.data import Say
from tallrec.steps.score import finished_run
from tallrec.steps.score_bucket import PairWorker, ScoreJob, read_stored, score_bucket
from tallrec.steps.score_pairs import check_columns, hashes_of


def score_on_ray(
    path: Path,
    table: str,
    out: str,
    *,
    data: str | None = None,
    by: str | None = None,
    endpoint: Endpoint | None = None,
    buckets: int = 64,
    cluster: ClusterOptions | None = None,
    say: Say = print,
) -> Tally:
    """Scores every row of Parquet tables, as `score_pairs` does, on a Ray cluster.

    Rows are sorted into buckets by their user, and buckets are scored by long-lived workers. Each
    appears whole or not at all; the same call again does those that are missing. Rows that cannot
    be scored (an unknown user or item, a prompt that does not fit) go to the folder `set-aside`
    of `out` with a reason.

    Args:
        path: The run.
        table: A Parquet file, a folder of them or a pattern, as path or URL; see `score_pairs` for
            its columns.
        out: Path or URL of a folder: `scores/bucket-00000.parquet` and so on, rows of a user
            together.
        data: A prepared folder instead of the run's own; if it is in buckets, each bucket of rows
            is read with its own.
        by: What scores; see `score_pairs`.
        endpoint: An endpoint that serves the run's model, to be asked instead.
        buckets: How many, unless the data is in buckets already.
        cluster: Where to work.
        say: Shows a line to the user.

    Raises:
        ValueError: If the run is unfinished, an option or a table is not right, or buckets could
            not be scored; the others are.
    """
    run, files = finished_run(path), parquet_files(table)
    folder = Store.at(data or run.info["data"]["folder"])
    known = folder.facts(BUCKETS)
    own = read_prepared(Path(run.info["data"]["folder"]))
    asked = Asked.of(run, own, "model" if endpoint else by)
    job = ScoreJob(path.resolve(), folder, known is not None, Store.at(out), asked.by, endpoint)
    buckets = known["buckets"] if known else buckets
    if buckets < 1:
        raise ValueError(f"buckets must be at least 1; got {buckets}")
    with fetched(next(iter(files))) as first:
        schema = pl.scan_parquet(first).collect_schema()
    check_columns(schema, table)
    facts = {
        "table": files,
        "data": known or read_stored(folder).hashes,
        "endpoint": endpoint and [endpoint.base_url, endpoint.model, endpoint.api],
        "run": None if endpoint else hashes_of(asked),
        "number of buckets": buckets,
    }
    begin(job.out, facts)
    jobs = {bucket: partial(score_bucket, bucket=bucket) for bucket in missing_in(job.out, buckets)}
    if jobs:
        cluster = cluster or ClusterOptions()
        key = partial(_keyed, by_user="user" in schema)
        with connected(cluster), Workers(partial(PairWorker, job), cluster, say) as workers:
            scatter_all(workers, files, key, job.out, buckets)
            work_off(workers, jobs, "Scoring buckets", job.out)
    return finish(job.out)


def _keyed(rows: pl.LazyFrame, *, by_user: bool) -> pl.LazyFrame:
    """Rows with the key that keeps candidates of one user, or after one history, together."""
    if by_user:
        return rows.with_columns(pl.col("user").cast(pl.String).alias(KEY))
    items = pl.col("history").list.eval(pl.element().struct.field("item"))
    return rows.with_columns(items.list.join("\n", ignore_nulls=True).alias(KEY))
