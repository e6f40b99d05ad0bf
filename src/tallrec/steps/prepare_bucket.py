"""What a Ray worker does to prepare a bucket of users; see `tallrec.steps.prepare_on_ray`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from tallrec.data.prepared import TABLES, PreparedInfo, write_prepared
from tallrec.data.samples import build_samples
from tallrec.data.splits import by_part, parts_in_time, times_of
from tallrec.data.table import read_table
from tallrec.data.values import titles_in
from tallrec.scale.buckets import ROW, Piece, folder_of, gathered
from tallrec.scale.jobs import DONE, SCATTERED, SET_ASIDE
from tallrec.scale.poison import sift
from tallrec.scale.storage import Store, fetched
from tallrec.types import Dataset, IntArray, Samples

WORK = "samples"
"""The folder of samples whose split is not known yet, while a job is under way."""
ROLES = ("user", "item", "rating", "timestamp")
_MOST_BAD = 100  # rows of a bucket that may be wrong


@dataclass(frozen=True)
class PrepareJob:
    """What every worker knows.

    Attributes:
        out: The folder of the buckets.
        info: How samples and split are made.
    """

    out: Store
    info: PreparedInfo


def titles_of(_job: PrepareJob, piece: Piece, columns: dict[str, str]) -> pl.DataFrame:
    """The titles that a piece of the interactions comes with; `columns` by role."""
    roles = [role for role in ("title", "creator") if role in columns]
    names = [pl.col(columns[role]).cast(pl.String).alias(role) for role in ("item", *roles)]
    with fetched(piece.url) as path:
        rows = pl.scan_parquet(path).slice(piece.start, piece.rows).select(names)
        return titles_in(rows, roles).drop("titles").collect()


def build_bucket(job: PrepareJob, bucket: int) -> None:
    """Makes the samples of a bucket, and what the split needs to know of them."""
    rows, name = gathered(job.out / SCATTERED, bucket), folder_of(bucket)
    good, aside = (None, None) if rows is None else _read(job, rows)
    if aside is not None and aside.height:
        (job.out / SET_ASIDE).put_table(f"{name}.parquet", aside.drop(ROW))
    if good is not None:
        folder = job.out / WORK / name
        dataset, firsts = good
        samples = _build(job.info, dataset)
        folder.put_table("events.parquet", samples.events)
        folder.put_table("rows.parquet", samples.rows)
        folder.put_table("split.parquet", _for_split(job.info.split, samples, firsts))
    facts = {"empty": good is None, "set_aside": 0 if aside is None else aside.height}
    (job.out / WORK / DONE).put_facts(f"{name}.json", facts)


def _read(
    job: PrepareJob, rows: pl.DataFrame
) -> tuple[tuple[Dataset, IntArray] | None, pl.DataFrame]:
    """A bucket as a data set with each user's first row of all files; and the rows set aside."""
    with job.out.local("catalog.parquet") as catalog, TemporaryDirectory() as folder:

        def read(part: pl.DataFrame) -> tuple[Dataset, pl.DataFrame]:
            path = Path(folder) / "interactions.parquet"
            part.drop(ROW).write_parquet(path)
            return read_table(path, items=catalog, domain=job.info.domain), part

        good, aside = sift(rows, read, most=_MOST_BAD)
        if len(good) > 1:  # all that is right, as one table
            good = [read(pl.concat([part for _, part in good]))]
    if not good:
        return None, aside
    ((dataset, used),) = good
    first = dataset.interactions["user"].is_first_distinct()  # users are numbered in this order
    return (dataset, used[ROW].filter(first).cast(pl.Int64).to_numpy()), aside


def _build(info: PreparedInfo, dataset: Dataset) -> Samples:
    """The samples of a bucket; to have none is no mistake where there are other buckets."""
    longest = dataset.interactions.group_by("user").len()["len"].max()
    enough = isinstance(longest, int) and longest > info.min_history
    samples = build_samples(
        dataset,
        history=info.history,
        min_history=info.min_history if enough else 0,
        like_above=info.like_above,
    )
    return samples if enough else samples[:0]


def _for_split(split: str, samples: Samples, firsts: IntArray) -> pl.DataFrame:
    """What decides on the parts, together with all other buckets' tables of this kind."""
    if split == "time":
        values, counts = np.unique(times_of(samples), return_counts=True)
        return pl.DataFrame({"timestamp": values, "count": counts})
    return pl.DataFrame({"first": firsts[np.unique(samples.users)]})


def split_bucket(job: PrepareJob, bucket: int, parts: IntArray | tuple[int, int] | None) -> None:
    """Splits the samples of a bucket and writes it as a prepared folder.

    Args:
        job: What every worker knows.
        bucket: Which one.
        parts: The part of each of its users who has samples, in order of first appearance; or the
            moments at which parts begin; None for a bucket without users.
    """
    name = folder_of(bucket)
    facts = (job.out / WORK / DONE).facts(f"{name}.json") or {}
    with job.out.local("catalog.parquet") as catalog, TemporaryDirectory() as folder:
        samples = _stored(job, name, pl.read_parquet(catalog))
        if isinstance(parts, tuple):
            each = parts_in_time(times_of(samples), parts)
        else:
            each = np.zeros(0, np.int64) if parts is None else parts[_ranks(samples)]
        write_prepared(Path(folder) / name, by_part(samples, each), job.info, catalog=catalog)
        tables = (f"{table}.parquet" for table in TABLES if table != "catalog")
        for file in (*tables, "prepared.json"):
            (job.out / name).put(file, Path(folder) / name / file)
    counts = {"rows": len(samples), "set_aside": facts["set_aside"]}
    (job.out / DONE).put_facts(f"{name}.json", counts)


def _ranks(samples: Samples) -> IntArray:
    """Each sample's user as a number among those who have samples, shape [n]."""
    return np.unique(samples.users, return_inverse=True)[1]


def _stored(job: PrepareJob, name: str, catalog: pl.DataFrame) -> Samples:
    """The samples that `build_bucket` has made."""
    folder = job.out / WORK / name
    if "split.parquet" in folder.names():
        return Samples(catalog, folder.table("events.parquet"), folder.table("rows.parquet"))
    ids = {"user": pl.Enum([]), "item": pl.Enum(catalog["item"])}
    more = {"liked": pl.Boolean(), "timestamp": pl.Int64()}
    events = pl.DataFrame(schema={**ids, "rating": pl.Float32(), **more})
    spans = {"start": pl.Int64(), "stop": pl.Int64()}
    rows = pl.DataFrame(schema={"user": ids["user"], **spans, "target": ids["item"], **more})
    return Samples(catalog, events.select("user", "item", "liked", "rating", "timestamp"), rows)
