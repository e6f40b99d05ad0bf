"""The steps after tuning: evaluate, compare, score and recommend. They know Scorers only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tallrec.baselines import COUNTING_BASELINES
from tallrec.data.prepared import Prepared, read_prepared
from tallrec.evaluate import (
    COUNTING,
    MODEL,
    Evaluation,
    Result,
    System,
    compare,
    summarize,
    write_report,
)
from tallrec.evaluate.plots import figures, shots_figure
from tallrec.llm.adapter import load_adapter
from tallrec.llm.backbone import Backbone
from tallrec.llm.scoring import LlmScorer
from tallrec.progress import shown
from tallrec.recommend import recommend
from tallrec.run import RunDir, open_run
from tallrec.steps.data import Say
from tallrec.steps.stages import scorer_of
from tallrec.steps.tune import load, shots_of
from tallrec.types import PARTS, FloatArray, Samples


def evaluate_run(
    path: Path,
    *,
    data: Path | None = None,
    part: str = "test",
    out: Path | None = None,
    backbone: Backbone | None = None,
    say: Say = print,
) -> Result:
    """Scores a part with every seed of a run and reports it beside the counting baselines.

    Args:
        path: The run directory; every seed must be tuned.
        data: Another prepared folder to evaluate on (then `out` must be given too).
        part: `train`, `valid` or `test`.
        out: Where to write the report; the run directory unless given.
        backbone: The run's backbone, if it is loaded already.
        say: Shows a line to the user.

    Raises:
        ValueError: If the run is unfinished or an option is not right.
    """
    run = _finished(path)
    own = read_prepared(Path(run.info["data"]["folder"]))
    prepared = read_prepared(data) if data else own
    if (data or part != "test") and out is None:
        raise ValueError("an evaluation on other rows than the run's test part needs --out")
    out = out or path
    out.mkdir(parents=True, exist_ok=True)
    samples = part_of(prepared, part)
    models = _score_seeds(run, prepared, samples, out, backbone, say)
    evaluation = Evaluation(
        labels=samples.labels,
        users=samples.users,
        systems=(*models, *_count(run, own, samples)),
        metadata=_metadata(run, prepared, part),
    )
    result = summarize(evaluation, resamples=run.recipe.evaluation.resamples)
    write_report(out, result, figures(evaluation))
    return result


def compare_runs(paths: list[Path], out: Path | None = None) -> Result:
    """Puts the reports of several runs beside each other; writes a report if `out` is given.

    Raises:
        ValueError: If a run has no report, or runs were evaluated on different rows.
    """
    results = {}
    for path in paths:
        if not (path / "report.json").exists():
            raise ValueError(f"{path} has no report yet: run 'tallrec evaluate {path}' first")
        name = path.name if len({p.name for p in paths}) == len(paths) else str(path)
        results[name] = json.loads((path / "report.json").read_text(encoding="utf-8"))
    result = compare(results)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_report(out, result, {"AUC by shots": shots_figure(results)})
    return result


def score_run(
    path: Path, out: Path, *, data: Path | None = None, part: str = "test", say: Say = print
) -> pl.DataFrame:
    """Scores a part of any prepared folder with a run and writes the scores as Parquet.

    The scores are the mean log-odds of the run's seeds.

    Returns:
        `user`, `item`, `liked` (null where unknown) and `log_odds`, one row a sample.

    Raises:
        ValueError: If the run is unfinished, or an option or the folder is not right.
    """
    run = _finished(path)
    prepared = read_prepared(data or Path(run.info["data"]["folder"]))
    samples = part_of(prepared, part)
    backbone = load(run.recipe, say=say)
    scores = []
    for seed in run.recipe.seeds:
        with _scorer(run, backbone, seed, prepared.info.domain) as scorer:
            scores.append(_shown(scorer, samples, f"Scoring, seed {seed}"))
    table = _table(samples, np.mean(scores, axis=0))
    table.write_parquet(out)
    return table


def recommend_run(
    path: Path,
    user: str,
    *,
    k: int = 10,
    data: Path | None = None,
    backbone: Backbone | None = None,
    say: Say = print,
) -> pl.DataFrame:
    """The best items for a user by a run's first seed; see `recommend`.

    The user is one of the run's own data or, where `data` is given, of that prepared folder.

    Raises:
        ValueError: If the run is unfinished or the user unknown.
    """
    run = _finished(path)
    prepared = read_prepared(data or Path(run.info["data"]["folder"]))
    backbone = backbone or load(run.recipe, say=say)
    with (
        _scorer(run, backbone, run.recipe.seeds[0], prepared.info.domain) as scorer,
        shown("Ranking") as on_progress,
    ):
        return recommend(
            replace(scorer, on_progress=on_progress),
            prepared.splits.train,
            user,
            k=k,
            history=prepared.info.history,
        )


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


def _finished(path: Path) -> RunDir:
    run = open_run(path)
    if not run.tuned:
        raise ValueError(
            f"{path} is not finished: continue it with the command that began it, "
            f"'{' '.join(run.info['command'])}'"
        )
    return run


@contextmanager
def _scorer(run: RunDir, backbone: Backbone, seed: int, domain: str) -> Iterator[LlmScorer]:
    model = load_adapter(backbone, run.adapter(seed))
    try:
        yield scorer_of(run.recipe, backbone, model, domain)
    finally:
        model.unload()


def _score_seeds(
    run: RunDir,
    prepared: Prepared,
    samples: Samples,
    out: Path,
    backbone: Backbone | None,
    say: Say,
) -> list[System]:
    """Scores by every seed, each kept as Parquet; what is there already is not computed again."""
    scores = []
    for seed in run.recipe.seeds:
        path = out / f"seed-{seed}" / "scores.parquet"
        if not _holds(path, samples):
            backbone = backbone or load(run.recipe, say=say)
            path.parent.mkdir(exist_ok=True)
            with _scorer(run, backbone, seed, prepared.info.domain) as scorer:
                table = _table(samples, _shown(scorer, samples, f"Scoring, seed {seed}"))
            table.write_parquet(path)
        scores.append(pl.read_parquet(path)["log_odds"].to_numpy())
    systems = [System(_name(run), MODEL, np.array(scores))]
    if run.recipe.evaluation.zero_shot:
        backbone = backbone or load(run.recipe, say=say)
        untuned = scorer_of(run.recipe, backbone, backbone.model, prepared.info.domain)
        zero = _shown(untuned, samples, "Scoring zero-shot")
        systems.append(System(f"{_name(run)}, not tuned", "zero-shot", zero[None]))
    return systems


def _holds(path: Path, samples: Samples) -> bool:
    columns = ["user", "item", "liked"]
    return path.exists() and pl.read_parquet(path, columns=columns).equals(_table(samples))


def _table(samples: Samples, scores: FloatArray | None = None) -> pl.DataFrame:
    table = samples.rows.select(
        pl.col("user").cast(pl.String), pl.col("target").cast(pl.String).alias("item"), "liked"
    )
    return table if scores is None else table.with_columns(log_odds=pl.Series(scores))


def _shown(scorer: LlmScorer, samples: Samples, description: str) -> FloatArray:
    with shown(description) as on_progress:
        return replace(scorer, on_progress=on_progress)(samples)


def _count(run: RunDir, own: Prepared, samples: Samples) -> list[System]:
    """The counting baselines, fitted on the same shots as each seed's adapter."""
    systems = []
    for name, fit in COUNTING_BASELINES.items():
        scores = []
        for seed in run.recipe.seeds:
            shots, valid = shots_of(run.recipe, own, seed)
            if valid is not None and run.recipe.shots.validation == "shots":
                shots = replace(shots, rows=pl.concat([shots.rows, valid.rows]))
            scores.append(fit(shots)(samples))
        if all(np.array_equal(scores[0], other) for other in scores[1:]):
            scores = scores[:1]  # it learns nothing, so seeds do not differ
        systems.append(System(name, COUNTING, np.array(scores)))
    return systems


def _name(run: RunDir) -> str:
    return f"{run.recipe.backbone.source}, {run.recipe.template}"


def _stages(run: RunDir) -> str:
    """What was tuned on, in words; a stage on instructions that was left out is named too."""
    recipe = run.recipe
    stages = [f"instructions ({Path(stage.source).name})" for stage in recipe.instruction_stages]
    if recipe.backbone.adapter is not None:
        stages.insert(0, f"from the adapter {recipe.backbone.adapter}")
    elif not stages and run.info["backbone"]["chat_template"]:
        stages.append("no instructions (the backbone is instruction-tuned: it has a chat template)")
    elif not stages:
        stages.append("no instructions")
    return ", then ".join([*stages, *(["shots"] if recipe.shots_stage else [])])


def _metadata(run: RunDir, prepared: Prepared, part: str) -> dict[str, Any]:
    recipe, info = run.recipe, run.info
    questions = _table(prepared.splits.parts()[part]).write_csv()
    return {
        "run": run.path.name,
        "recipe": recipe.name,
        "dataset": prepared.info.dataset,
        "split": prepared.info.split,
        "part": part,
        "backbone": recipe.backbone.source,
        "template": recipe.template,
        "stages": _stages(run),
        "shots": recipe.shots.count if recipe.shots_stage else 0,
        "seeds": list(recipe.seeds),
        "validation": recipe.shots.validation,
        "tuning_seconds": [facts["seconds"] for facts in info["tuning"].values()],
        "test_hash": hashlib.sha256(questions.encode()).hexdigest(),
        "tallrec": info["tallrec"],
    }
