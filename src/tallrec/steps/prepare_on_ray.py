"""Prepared folders from tables of any size, on a Ray cluster; see `tallrec.scale`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from tallrec.data.prepared import BUCKETS, PreparedInfo
from tallrec.data.reading import open_table
from tallrec.data.splits import cuts_in_time, parts_of_users
from tallrec.data.table import GUESSES, find_columns
from tallrec.data.values import read_catalog, titles_in
from tallrec.scale.buckets import KEY, ROW, folder_of, pieces_of
from tallrec.scale.cluster import ClusterOptions, connected
from tallrec.scale.jobs import DONE, Tally, begin, finish, missing_in, scatter_all, work_off
from tallrec.scale.storage import Store, fetched, parquet_files
from tallrec.scale.workers import Workers
from tallrec.steps.data import Say
from tallrec.steps.prepare_bucket import (
    ROLES,
    WORK,
    PrepareJob,
    build_bucket,
    split_bucket,
    titles_of,
)
from tallrec.types import IntArray

_SPLITS = ("users", "time")  # "paper" is about its own data, which fit one machine


def prepare_on_ray(
    table: str,
    out: str,
    *,
    split: str = "users",
    history: int = 10,
    min_history: int | None = None,
    like_above: float | None = None,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    items: str | None = None,
    items_id: str | None = None,
    domain: str = "item",
    buckets: int = 64,
    cluster: ClusterOptions | None = None,
    say: Say = print,
) -> Tally:
    """Prepares Parquet tables of interactions as `prepare` does, in buckets of users.

    Samples and parts are those of the one-machine path: users are in the order of their first row
    in all files, and the split looks at all buckets. What is computed is kept bucket by bucket;
    the same call goes on from it. Rows that are not right go to the folder `set-aside` of `out`
    with a reason.

    Args:
        table: A Parquet file, a folder of them or a pattern, as path or URL.
        out: Path or URL of a folder: `catalog.parquet`, and `bucket-00000` and so on, each a
            prepared folder.
        split: `users` or `time`.
        history: The longest history of a sample.
        min_history: The shortest; `history` unless given.
        like_above: A rating above this is a like; 3 unless given.
        seed: Seed of the split `users`.
        columns: The tables' columns by role; see `read_table`.
        items: A second file with the titles, as path or URL; see `read_table`.
        items_id: Its column of ids; see `read_table`.
        domain: What an item is called in a prompt.
        buckets: How many; one must fit into a worker's memory several times.
        cluster: Where to work.
        say: Shows a line to the user.

    Returns:
        How many samples there are, and how many interactions were set aside.

    Raises:
        ValueError: If an option or a table is not right, or buckets could not be prepared.
    """
    if split not in _SPLITS:
        raise ValueError(f"on Ray, split must be one of {', '.join(_SPLITS)}; got {split!r}")
    files, cluster = parquet_files(table), cluster or ClusterOptions()
    min_history = history if min_history is None else min_history
    if history < 1 or not 0 <= min_history <= history:
        raise ValueError(
            f"history must be at least 1 and min_history between 0 and history; "
            f"got history={history}, min_history={min_history}"
        )
    like_above = 3.0 if like_above is None else like_above
    name = table.rstrip("/").rsplit("/", 1)[-1].split(".")[0]
    info = PreparedInfo(name, domain, split, history, min_history, like_above, seed)
    at = _columns(next(iter(files)), columns or {}, titled=items is None)
    titles = parquet_files(items) if items and items.endswith(".parquet") else items
    job = PrepareJob(Store.at(out), info)
    facts = {"table": files, "columns": at, "items": titles, "info": asdict(info)}
    begin(job.out, facts | {"number of buckets": buckets})
    if missing_in(job.out, buckets):
        with connected(cluster), Workers(partial(_same, job), cluster, say) as workers:
            if "catalog.parquet" not in job.out.names():
                catalog = (
                    _read_items(items, columns or {}, items_id)
                    if items
                    else _titles(workers, files, at, job.out)
                )
                job.out.put_table("catalog.parquet", catalog)
            _prepare(workers, job, files, at, buckets)
    (job.out / WORK).remove()
    tally = finish(job.out)
    job.out.put_facts(BUCKETS, {"buckets": buckets, "samples": tally.rows, **asdict(info)})
    return tally


def _same(job: PrepareJob) -> PrepareJob:
    """A worker needs nothing but the job."""
    return job


def _columns(url: str, columns: Mapping[str, str], *, titled: bool) -> dict[str, str]:
    """The tables' columns by role, looked for in one of them."""
    with fetched(url) as path, open_table(path) as table:
        options = {"title": "--title, or a second file as --items"}
        at = find_columns(table, columns, tuple(GUESSES) if titled else ROLES, options)
        return {role: table.names[int(position) - 1] for role, position in at.items()}


def _read_items(url: str, columns: Mapping[str, str], items_id: str | None) -> pl.DataFrame:
    """The catalogue of a file of items."""
    ids = {"item": items_id} if items_id else {}
    with fetched(url) as path, open_table(path) as table:
        roles = ("item", "title", "creator")
        return read_catalog(
            table, find_columns(table, {**columns, **ids}, roles, {"item": "--items-id"})
        )


def _titles(
    workers: Workers[PrepareJob], files: dict[str, str], at: dict[str, str], out: Store
) -> pl.DataFrame:
    """The catalogue of interactions that come with titles: each item's first title counts."""
    jobs = {piece.number: partial(titles_of, piece=piece, columns=at) for piece in pieces_of(files)}
    found = work_off(workers, jobs, "Titles", out).values()
    roles = [role for role in ("title", "creator") if role in at]
    catalog = titles_in(pl.concat(found).lazy(), roles).drop("titles").collect()
    catalog = catalog.filter(pl.col("item").is_not_null())
    if (untitled := catalog.filter(pl.col("title").is_null())["item"]).len():
        raise ValueError(
            f"item {untitled[0]!r} has no title; every item needs one in one of its rows"
        )
    creator = pl.col("creator") if "creator" in roles else pl.lit(None, pl.String)
    return catalog.select("item", "title", creator.alias("creator"))


def _prepare(
    workers: Workers[PrepareJob],
    job: PrepareJob,
    files: dict[str, str],
    at: dict[str, str],
    buckets: int,
) -> None:
    """Goes through the phases; what is there already is not done again."""
    scatter_all(workers, files, partial(_interactions, at=at), job.out, buckets)
    build = {b: partial(build_bucket, bucket=b) for b in missing_in(job.out / WORK, buckets)}
    work_off(workers, build, "Samples", job.out)
    parts = _parts(job, buckets)
    split = {
        b: partial(split_bucket, bucket=b, parts=parts[b]) for b in missing_in(job.out, buckets)
    }
    work_off(workers, split, "Splitting", job.out)


def _interactions(rows: pl.LazyFrame, at: dict[str, str]) -> pl.LazyFrame:
    """The columns of interactions by role; blank rows are left out."""
    roles = {role: pl.col(at[role]) for role in ROLES if role in at}
    blank = pl.all_horizontal(pl.col(name).is_null() for name in roles)
    user = pl.col("user").cast(pl.String).alias(KEY)
    return rows.select(ROW, **roles).filter(~blank).with_columns(user)


def _parts(job: PrepareJob, buckets: int) -> dict[int, Any]:
    """What says to which parts the samples of each bucket belong; see `split_bucket`."""
    tables = {}
    for bucket in range(buckets):
        folder = job.out / WORK / folder_of(bucket)
        known = (job.out / WORK / DONE).facts(f"{folder_of(bucket)}.json") or {}
        if not known["empty"]:
            tables[bucket] = folder.table("split.parquet")
    whole = pl.concat(list(tables.values())) if tables else pl.DataFrame()
    if whole.is_empty():
        raise ValueError(
            f"no user has more than {job.info.min_history} interactions: give a smaller --history "
            f"or --min-history"
        )
    if job.info.split == "time":
        moments = whole.group_by("timestamp").agg(pl.col("count").sum()).sort("timestamp")
        cuts = cuts_in_time(moments["timestamp"].to_numpy(), moments["count"].to_numpy())
        return {bucket: cuts if bucket in tables else None for bucket in range(buckets)}
    firsts: IntArray = whole["first"].to_numpy()
    parts = np.empty(len(firsts), np.int64)
    parts[np.argsort(firsts)] = parts_of_users(len(firsts), seed=job.info.seed)
    ends = np.cumsum([0, *(table.height for table in tables.values())])
    own = {b: parts[i:j] for b, (i, j) in zip(tables, pairwise(ends), strict=True)}
    return {bucket: own.get(bucket) for bucket in range(buckets)}
