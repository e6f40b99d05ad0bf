"""Who gives the scores of a run: its tuned model, or its Gaussian process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from tallrec.data.histories import samples_of_pairs, samples_of_table
from tallrec.data.prepared import Prepared, read_prepared
from tallrec.data.samples import in_blocks, with_histories
from tallrec.llm.backbone import Backbone
from tallrec.run import RunDir
from tallrec.steps.data import Say
from tallrec.steps.gaussian import processes_of
from tallrec.steps.score import (
    finished_run,
    part_of,
    score_table,
    scores_by_seed,
    seed_scorer,
    unloaded_after,
    write_table,
)
from tallrec.steps.tune import load
from tallrec.types import FloatArray, Samples, Scorer

BY = ("model", "gaussian-process")
"""What a run may be asked by."""


def score_run(
    path: Path,
    out: Path,
    *,
    data: Path | None = None,
    part: str = "test",
    by: str | None = None,
    say: Say = print,
) -> pl.DataFrame:
    """Scores a part of any prepared folder with a run and writes the scores as Parquet.

    The scores are the mean log-odds of the run's seeds.

    Args:
        path: The run.
        out: The Parquet file to write.
        data: A prepared folder instead of the run's own.
        part: `train`, `valid` or `test`.
        by: What scores, one of `BY`; unless given, the Gaussian process if the run's recipe has
            one.
        say: Shows a line to the user.

    Returns:
        `user`, `item`, `liked` (null where unknown) and `log_odds`, one row a sample.

    Raises:
        ValueError: If the run is unfinished, or an option or the folder is not right.
    """
    run = finished_run(path)
    prepared = read_prepared(data or Path(run.info["data"]["folder"]))
    asked, samples = Asked.of(run, prepared, by), part_of(prepared, part)
    table = score_table(samples, asked.scores(samples, prepared.info.domain, say=say))
    write_table(out, table)
    return table


@dataclass(frozen=True)
class Asked:
    """What is asked, and how much of a history it reads.

    Attributes:
        run: A finished run.
        by: One of `BY`.
        longest: How many of the latest events of a history it sees at least.
        block: How many events the beginning of what it sees moves at once; see `in_blocks`.
    """

    run: RunDir
    by: str
    longest: int
    block: int

    @classmethod
    def of(cls, run: RunDir, prepared: Prepared, by: str | None) -> Asked:
        """Chooses; without a wish, the Gaussian process if the run's recipe has one.

        Raises:
            ValueError: If there is no such thing, or the run has no process.
        """
        process = run.recipe.gaussian_process
        by = by or ("model" if process is None else "gaussian-process")
        if by not in BY:
            raise ValueError(f"a run can be asked by {' or '.join(BY)}; got {by!r}")
        if by == "model":
            return cls(run, by, prepared.info.history, run.recipe.evaluation.block)
        if process is None:
            raise ValueError(
                f"{run.path} has no Gaussian process: its recipe has no [gaussian_process]"
            )
        return cls(run, by, process.history, block=1)

    def scorers(
        self, domain: str, *, backbone: Backbone | None = None, say: Say = print
    ) -> Callable[[int], AbstractContextManager[Scorer]]:
        """Gives the scorer of a seed; those of a model are to be used one after the other.

        Args:
            domain: The noun for an item that is asked about.
            backbone: The run's backbone, if it is loaded already.
            say: Shows a line to the user.
        """
        if self.by == "model":
            loaded = backbone or load(self.run.recipe, say=say)
            return lambda seed: unloaded_after(seed_scorer(self.run, loaded, seed, domain))
        own = read_prepared(Path(self.run.info["data"]["folder"]))
        process = processes_of(self.run, own, domain=domain, backbone=backbone, say=say)
        return lambda seed: nullcontext(process(seed))

    def scores(self, samples: Samples, domain: str, *, say: Say = print) -> FloatArray:
        """Mean log-odds of the run's seeds, shape [n]."""
        seeds = self.run.recipe.seeds
        if self.by == "model":
            asked = in_blocks(samples, self.block)
            by_seed = dict(scores_by_seed(self.run, asked, seeds, domain=domain, say=say))
        else:
            asked, scorer_of = with_histories(samples, self.longest), self.scorers(domain, say=say)
            by_seed = {}
            for seed in seeds:
                with scorer_of(seed) as scorer:
                    by_seed[seed] = scorer(asked)
        mean: FloatArray = np.mean(list(by_seed.values()), axis=0)
        return mean

    def questions(self, prepared: Prepared, chunk: pl.DataFrame) -> Samples:
        """What the rows of a table ask; their ids are text; see `score_pairs`."""
        samples = prepared.splits.train
        if "history" in chunk.columns:
            asked = samples_of_table(samples.catalog, chunk, longest=self.longest)
        else:
            pairs = chunk.select("user", "item")
            asked = samples_of_pairs(samples, pairs, longest=self.longest)
        return in_blocks(asked, self.block)
