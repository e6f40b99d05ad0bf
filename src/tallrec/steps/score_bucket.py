"""What a Ray worker does to score a bucket of rows; see `tallrec.steps.score_on_ray`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from tallrec.baselines.endpoint import Client, Endpoint
from tallrec.baselines.in_context import InContextScorer
from tallrec.baselines.journal import Journal
from tallrec.data.prepared import TABLES, Prepared, read_prepared
from tallrec.llm.backbone import Backbone
from tallrec.prompts import get_template
from tallrec.run import RunDir
from tallrec.scale.buckets import ROW, folder_of, gathered
from tallrec.scale.jobs import DONE, SCATTERED, SET_ASIDE
from tallrec.scale.poison import sift, with_reason
from tallrec.scale.storage import Store
from tallrec.steps.asked import Asked
from tallrec.steps.score import finished_run
from tallrec.steps.score_pairs import (
    ROWS,
    ids_of,
    log_odds_of,
    mean_of,
    unknown_in,
)
from tallrec.steps.tune import load
from tallrec.types import FloatArray, Samples, Scorer

Columned = tuple[str, AbstractContextManager[Scorer]]
SCORES = "scores"
"""The folder of the scored buckets."""
_MOST_BAD = 100  # rows of a bucket that a model may refuse
_MOST_UNANSWERED = 3  # by an endpoint: each costs many attempts


@dataclass(frozen=True)
class ScoreJob:
    """What every worker knows.

    Attributes:
        run: The run's folder; on every machine at the same path, as its data.
        data: A prepared folder, in buckets or whole.
        in_buckets: Whether it is in buckets.
        out: Where scores go.
        by: What scores; see `Asked`.
        endpoint: Whom to ask instead of loading the run's model.
    """

    run: Path
    data: Store
    in_buckets: bool
    out: Store
    by: str
    endpoint: Endpoint | None


def read_stored(data: Store, bucket: int | None = None) -> Prepared:
    """Reads a prepared folder, or a bucket of one, from wherever it is."""
    folder = f"{folder_of(bucket)}/" if bucket is not None else ""
    tables = (f"{folder}{table}.parquet" for table in TABLES if table != "catalog")
    with data.local_tree("catalog.parquet", f"{folder}prepared.json", *tables) as here:
        return read_prepared(here / folder)


class PairWorker:
    """Scores buckets; loads what that needs once, when it is first needed."""

    def __init__(self, job: ScoreJob) -> None:
        self.job = job

    @cached_property
    def run(self) -> RunDir:
        """The run."""
        return finished_run(self.job.run)

    @cached_property
    def backbone(self) -> Backbone:
        """The run's backbone."""
        return load(self.run.recipe, say=_silent)

    def asked(self, prepared: Prepared) -> Asked:
        """What is asked about a bucket."""
        return Asked.of(self.run, prepared, self.job.by)

    @cached_property
    def _whole(self) -> Prepared:
        return read_stored(self.job.data)

    def prepared(self, bucket: int) -> Prepared:
        """The data, or a bucket of it."""
        return read_stored(self.job.data, bucket) if self.job.in_buckets else self._whole

    def begin(self) -> None:
        """Loads what every bucket needs, so that none is measured with it."""
        if not self.job.in_buckets:
            _ = self._whole
        if self.job.endpoint is None and self.job.by == "model":
            _ = self.backbone

    def scorers(self, asked: Asked, domain: str) -> Iterator[Columned]:
        """The column of each seed's scores, and its scorer."""
        if self.job.endpoint is not None:
            yield log_odds_of(0), _asking(self.job.endpoint, self.run.recipe.template, domain)
            return
        backbone = self.backbone if asked.by == "model" else None
        scorer_of = asked.scorers(domain, backbone=backbone, say=_silent)
        for seed in self.run.recipe.seeds:
            yield log_odds_of(seed), scorer_of(seed)


@contextmanager
def _asking(endpoint: Endpoint, template: str, domain: str) -> Iterator[Scorer]:
    def ask(samples: Samples) -> FloatArray:  # a client that was refused asks nothing more
        journal = Journal(Path(folder) / "answers.jsonl")
        return InContextScorer(Client(endpoint), journal, get_template(template), domain)(samples)

    with TemporaryDirectory(prefix="tallrec-") as folder:
        yield ask


def _silent(_line: str) -> None:
    """Nobody reads what a worker says."""


def score_bucket(worker: PairWorker, bucket: int) -> None:
    """Scores a bucket and writes it; its file in `done`, written last, says that it is whole."""
    worker.begin()
    began = time.monotonic()
    out, name = worker.job.out, folder_of(bucket)
    rows = gathered(out / SCATTERED, bucket)
    tables = {} if rows is None else _scored(worker, bucket, rows)
    for folder, table in tables.items():
        if table.height:
            (out / folder).put_table(f"{name}.parquet", table)
    scored, aside = (tables[f].height if f in tables else 0 for f in (SCORES, SET_ASIDE))
    counts = {"rows": scored, "set_aside": aside, "seconds": time.monotonic() - began}
    (out / DONE).put_facts(f"{name}.json", counts)


def _scored(worker: PairWorker, bucket: int, rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The rows of a bucket with their scores, and those set aside with the reason."""
    schema = rows.schema
    prepared = worker.prepared(bucket)
    rows, bad = _known(prepared, rows)
    if "user" in schema:  # candidates of a user together, users in the order of the table
        rows = rows.sort(pl.col(ROW).min().over("user"), ROW)
    chunks = [rows[start : start + ROWS] for start in range(0, rows.height, ROWS)]
    seeds = []
    asked = worker.asked(prepared)
    for seed, scorer in worker.scorers(asked, prepared.info.domain):
        with scorer as score:
            questions = partial(asked.questions, prepared)
            chunks = _with_scores(worker, questions, score, seed, chunks, bad)
        seeds.append(seed)
    aside = pl.concat([part.select(*schema, "reason") for part in bad])
    scored = pl.concat(chunks).with_columns(*mean_of(seeds)) if chunks else rows.clear()
    return {SCORES: scored.drop(ROW, *seeds, strict=False), SET_ASIDE: aside.drop(ROW)}


def _known(prepared: Prepared, rows: pl.DataFrame) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
    """Rows whose user and item are in the data, and the others with the reason."""
    samples, bad = prepared.splits.train, []
    for column in ids_of(rows.schema):
        unknown = rows.select(pl.col(column).cast(pl.String)).select(unknown_in(samples, column))
        strange = rows.filter(unknown.to_series())
        where = pl.col(column).cast(pl.String).fill_null("(none)")
        bad.append(
            strange.with_columns(
                reason=pl.format("there is no {} {} in the data", pl.lit(column), where)
            )
        )
        rows = rows.filter(~unknown.to_series())
    return rows, bad


def _with_scores(
    worker: PairWorker,
    questions: Callable[[pl.DataFrame], Samples],
    score: Scorer,
    seed: str,
    chunks: list[pl.DataFrame],
    bad: list[pl.DataFrame],
) -> list[pl.DataFrame]:
    """Chunks with a seed's scores; rows that are refused, or get no number, go to `bad`."""
    most = _MOST_BAD if worker.job.endpoint is None else _MOST_UNANSWERED

    def work(rows: pl.DataFrame) -> pl.DataFrame:
        texts = rows.with_columns(pl.col(ids_of(rows.schema)).cast(pl.String))
        scores = score(questions(texts))
        return rows.with_columns(pl.Series(seed, scores))

    scored: list[pl.DataFrame] = []
    for chunk in chunks:
        good, refused = sift(chunk, work, most=most)
        if worker.job.endpoint is not None and refused.height and not good:
            raise ValueError(refused["reason"][0])  # nothing is answered: that is not the rows
        bad.append(refused)
        scored += good
    unknown = [part.filter(~pl.col(seed).is_finite()) for part in scored]
    bad += [with_reason(part, "its score is not a number") for part in unknown]
    return [part.filter(pl.col(seed).is_finite()) for part in scored]
