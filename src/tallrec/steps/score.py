"""Scores of a part of a prepared folder by the adapters of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from peft import PeftModel

from tallrec.data.prepared import Prepared
from tallrec.data.samples import in_blocks
from tallrec.files import whole_file
from tallrec.llm.adapter import load_adapter
from tallrec.llm.backbone import Backbone
from tallrec.llm.scoring import LlmScorer
from tallrec.progress import shown
from tallrec.run import RunDir, open_run
from tallrec.steps.data import Say
from tallrec.steps.stages import scorer_of
from tallrec.steps.tune import load
from tallrec.types import PARTS, FloatArray, Samples


def score_seeds(
    run: RunDir,
    samples: Samples,
    out: Path,
    *,
    domain: str,
    backbone: Backbone | None = None,
    say: Say = print,
) -> FloatArray:
    """Log-odds by every seed of a run, shape [n_seeds, n].

    Each seed's are kept in `out / "seed-N" / "scores.parquet"`; what is there already, for the same
    samples, is not computed again.
    """
    missing = [s for s in run.recipe.seeds if not _holds(_scores_file(out, s), samples)]
    for seed, scores in scores_by_seed(
        run, samples, missing, domain=domain, backbone=backbone, say=say
    ):
        path = _scores_file(out, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, score_table(samples, scores))
    return read_scores(run, out)


def read_scores(run: RunDir, out: Path) -> FloatArray:
    """The log-odds that `score_seeds` has written, shape [n_seeds, n]."""
    paths = (_scores_file(out, seed) for seed in run.recipe.seeds)
    return np.array([pl.read_parquet(path)["log_odds"].to_numpy() for path in paths])


def score_untuned(
    run: RunDir,
    samples: Samples,
    out: Path,
    *,
    domain: str,
    backbone: Backbone | None = None,
    say: Say = print,
) -> FloatArray:
    """Log-odds by the backbone without any adapter, shape [n]; kept in `out`."""

    def compute() -> FloatArray:
        loaded = backbone or load(run.recipe, say=say)
        scorer = scorer_of(run.recipe, loaded, loaded.model, domain)
        return _shown(scorer, samples, "Scoring, not tuned")

    return kept(out / "untuned.parquet", samples, compute)


def kept(path: Path, samples: Samples, compute: Callable[[], FloatArray]) -> FloatArray:
    """The scores in a file, shape [n]; computed and written if it has none for these samples."""
    if not _holds(path, samples):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, score_table(samples, compute()))
    return pl.read_parquet(path)["log_odds"].to_numpy()


def questions_of(run: RunDir, prepared: Prepared, part: str) -> Samples:
    """A part by name, with histories as the run's recipe wants them to be read.

    Raises:
        ValueError: If there is none of this name or it is empty.
    """
    return in_blocks(part_of(prepared, part), run.recipe.evaluation.block)


def part_of(prepared: Prepared, part: str) -> Samples:
    """A part by name.

    Raises:
        ValueError: If there is none of this name or it is empty.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}; got {part!r}")
    samples = prepared.splits.parts()[part]
    if not len(samples):
        raise ValueError(f"the part {part} of this prepared folder has no rows")
    return samples


def finished_run(path: Path) -> RunDir:
    """Opens a run whose tuning is finished.

    Raises:
        ValueError: If it is not.
    """
    run = open_run(path)
    if not run.tuned:
        raise ValueError(
            f"{path} is not finished: continue it with the command that began it, "
            f"'{run.info['command']}'"
        )
    return run


def score_table(samples: Samples, scores: FloatArray | None = None) -> pl.DataFrame:
    """One row a sample: user, item, liked (null where unknown) and, with scores, log_odds."""
    table = samples.rows.select(
        pl.col("user").cast(pl.String), pl.col("target").cast(pl.String).alias("item"), "liked"
    )
    return table if scores is None else table.with_columns(log_odds=pl.Series(scores))


def scores_by_seed(
    run: RunDir,
    samples: Samples,
    seeds: Sequence[int],
    *,
    domain: str,
    backbone: Backbone | None = None,
    say: Say = print,
) -> Iterator[tuple[int, FloatArray]]:
    """Each seed and its log-odds by the tuned model."""
    if not seeds:
        return
    backbone = backbone or load(run.recipe, say=say)
    known: dict[Path | None, FloatArray] = {}  # without a stage on shots, all seeds are one model
    for seed in seeds:
        adapter = run.adapter(seed)
        if adapter not in known:
            with unloaded_after(seed_scorer(run, backbone, seed, domain)) as scorer:
                known[adapter] = _shown(scorer, samples, f"Scoring, seed {seed}")
        yield seed, known[adapter]


def seed_scorer(run: RunDir, backbone: Backbone, seed: int, domain: str) -> LlmScorer:
    """The scorer of one seed; its adapter stays on the backbone until it is unloaded."""
    adapter = run.adapter(seed)
    model = backbone.model if adapter is None else load_adapter(backbone, adapter)
    return scorer_of(run.recipe, backbone, model, domain)


@contextmanager
def unloaded_after(scorer: LlmScorer) -> Iterator[LlmScorer]:
    """Takes the adapter of a scorer off its backbone when the block ends."""
    try:
        yield scorer
    finally:
        if isinstance(scorer.model, PeftModel):
            scorer.model.unload()


def _scores_file(out: Path, seed: int) -> Path:
    return out / f"seed-{seed}" / "scores.parquet"


def _holds(path: Path, samples: Samples) -> bool:
    columns = ["user", "item", "liked"]
    return path.exists() and pl.read_parquet(path, columns=columns).equals(score_table(samples))


def _shown(scorer: LlmScorer, samples: Samples, description: str) -> FloatArray:
    with shown(description) as on_progress:
        return replace(scorer, on_progress=on_progress)(samples)


def write_table(path: Path, table: pl.DataFrame) -> None:
    """Writes a Parquet file; it appears whole or not at all."""
    with whole_file(path) as temporary:
        table.write_parquet(temporary)
