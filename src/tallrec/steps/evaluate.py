"""The measuring steps: a run beside counting, and runs beside each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from torch import Tensor

from tallrec.baselines import COUNTING_BASELINES
from tallrec.baselines.fitting import FitOptions
from tallrec.baselines.sequential import fit_sequential
from tallrec.baselines.titles import encode_titles
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
from tallrec.llm.backbone import Backbone
from tallrec.run import RunDir
from tallrec.steps.data import Say, backbone_source
from tallrec.steps.score import (
    finished_run,
    kept,
    questions_of,
    score_seeds,
    score_table,
    score_untuned,
)
from tallrec.steps.tune import shots_of
from tallrec.types import FloatArray, Samples


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
    run = finished_run(path)
    own = read_prepared(Path(run.info["data"]["folder"]))
    prepared = read_prepared(data) if data else own
    if (data or part != "test") and out is None:
        raise ValueError("an evaluation on other rows than the run's test part needs --out")
    out = out or path
    out.mkdir(parents=True, exist_ok=True)
    samples = questions_of(run, prepared, part)
    evaluation = Evaluation(
        labels=samples.labels,
        users=samples.users,
        systems=(
            *_models(run, samples, out, prepared.info.domain, backbone, say),
            *_baselines(run, own, samples, out, say),
            *_count(run, own, samples),
        ),
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
        name = path.name if len({p.name for p in paths}) == len(paths) else str(path)
        results[name] = read_report(path)
    result = compare(results)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        # A report on in-context learning holds several numbers of shots, so it has no one place.
        placed = all(isinstance(r["metadata"].get("shots"), int) for r in results.values())
        write_report(out, result, {"AUC by shots": shots_figure(results)} if placed else None)
    return result


def read_report(path: Path) -> Result:
    """The report of an evaluated run.

    Raises:
        ValueError: If it has none.
    """
    try:
        return cast("Result", json.loads((path / "report.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{path} has no report yet: run 'tallrec evaluate {path}' first") from None


def _models(
    run: RunDir, samples: Samples, out: Path, domain: str, backbone: Backbone | None, say: Say
) -> list[System]:
    """The tuned model and, where the recipe wants it, the same one without its adapter."""
    recipe = run.recipe
    name = f"{recipe.backbone.source}, {recipe.template}"
    scores = score_seeds(run, samples, out, domain=domain, backbone=backbone, say=say)
    systems = [System(name, MODEL, scores)]
    if recipe.evaluation.zero_shot:
        zero = score_untuned(run, samples, out, domain=domain, backbone=backbone, say=say)
        systems.append(System(f"{name}, not tuned", "zero-shot", zero[None]))
    return systems


def _baselines(run: RunDir, own: Prepared, samples: Samples, out: Path, say: Say) -> list[System]:
    """The sequential recommenders that the recipe names; their scores are kept like the model's."""
    recipe = run.recipe
    length = own.info.history + recipe.evaluation.block - 1

    @cache
    def encode(titles: tuple[str, ...]) -> Tensor:
        return encode_titles(backbone_source(recipe.evaluation.encoder, say=say), titles)

    def fit_and_score(name: str, seed: int) -> FloatArray:
        shots, valid = shots_of(recipe, own, seed)
        if recipe.evaluation.baselines_on == "train":
            shots = own.splits.train
        options = FitOptions(length=length, seed=seed)
        return fit_sequential(name, shots, valid=valid, options=options, encode=encode)(samples)

    systems = []
    for name in recipe.evaluation.baselines:
        say(f"Fitting {name} on the {recipe.evaluation.baselines_on}")
        files = {seed: out / f"seed-{seed}" / f"{name}.parquet" for seed in recipe.seeds}
        scores = [
            kept(file, samples, partial(fit_and_score, name, seed)) for seed, file in files.items()
        ]
        systems.append(System(name, "sequential", np.array(scores)))
    return systems


def _count(run: RunDir, own: Prepared, samples: Samples) -> list[System]:
    """The counting baselines, fitted on the same shots as each seed's adapter."""

    def shots(seed: int) -> Samples:
        tuned_on, valid = shots_of(run.recipe, own, seed)
        if valid is not None and run.recipe.shots.validation == "shots":
            return replace(tuned_on, rows=pl.concat([tuned_on.rows, valid.rows]))
        return tuned_on

    return counting_systems([shots(seed) for seed in run.recipe.seeds], samples)


def counting_systems(shots: Sequence[Samples], samples: Samples) -> list[System]:
    """Every counting baseline on these samples.

    Args:
        shots: What it is fitted on, once for each seed.
        samples: What is scored.
    """
    systems = []
    for name, fit in COUNTING_BASELINES.items():
        scores = [fit(of_seed)(samples) for of_seed in shots]
        if all(np.array_equal(scores[0], other) for other in scores[1:]):
            scores = scores[:1]  # it learns nothing, so seeds do not differ
        systems.append(System(name, COUNTING, np.array(scores)))
    return systems


def questions_hash(samples: Samples) -> str:
    """Identifies test samples: reports on the same ones may be compared."""
    return hashlib.sha256(score_table(samples).write_csv().encode()).hexdigest()


def stages_in_words(run: RunDir) -> str:
    """What a run was tuned on; a stage on instructions that was left out is named too."""
    recipe = run.recipe
    chat = run.info.get("backbone", {}).get("chat_template")
    stages = [f"instructions ({Path(stage.source).name})" for stage in recipe.instruction_stages]
    if recipe.backbone.adapter is not None:
        stages.insert(0, f"from the adapter {recipe.backbone.adapter}")
    elif not stages and chat:
        stages.append("no instructions (the backbone is instruction-tuned: it has a chat template)")
    elif not stages:
        stages.append("no instructions")
    return ", then ".join([*stages, "shots" if recipe.shots_stage else "no shots"])


def _history_in_words(longest: int, block: int) -> str:
    if block == 1:
        return f"the latest {longest} events"
    return f"the latest {longest} to {longest + block - 1} events, in blocks of {block}"


def _metadata(run: RunDir, prepared: Prepared, part: str) -> dict[str, Any]:
    recipe, info = run.recipe, run.info
    return {
        "run": run.path.name,
        "recipe": recipe.name,
        "dataset": prepared.info.dataset,
        "split": prepared.info.split,
        "part": part,
        "history": _history_in_words(prepared.info.history, recipe.evaluation.block),
        "backbone": recipe.backbone.source,
        "template": recipe.template,
        "stages": stages_in_words(run),
        "shots": recipe.shots.count if recipe.shots_stage else 0,
        "seeds": list(recipe.seeds),
        "validation": recipe.shots.validation,
        "tuning_seconds": [facts["seconds"] for facts in run.tuning.values()],
        "test_hash": questions_hash(prepared.splits.parts()[part]),
        "tallrec": info["tallrec"],
    }
