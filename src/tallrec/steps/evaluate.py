"""The measuring steps: a run beside counting, and runs beside each other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

from tallrec.data.prepared import Prepared, read_prepared
from tallrec.evaluate import (
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
from tallrec.recipe import Recipe
from tallrec.run import RunDir
from tallrec.steps.baselines import FULL_DATA, count, score_references, score_sequential
from tallrec.steps.data import Say
from tallrec.steps.gaussian import score_process
from tallrec.steps.score import (
    finished_run,
    questions_of,
    score_seeds,
    score_table,
    score_untuned,
)
from tallrec.types import Samples


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
            *score_process(
                run,
                own,
                samples,
                out,
                domain=prepared.info.domain,
                backbone=backbone,
                say=say,
            ),
            *score_sequential(run.recipe, own, samples, out, say=say),
            *score_references(run.recipe, own, samples, out, say=say),
            *count(run.recipe, own, samples),
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


def _wants_full_data(recipe: Recipe) -> bool:
    process = recipe.gaussian_process
    return bool(recipe.evaluation.references) or (process is not None and process.full_data)


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
        **({"full_data": FULL_DATA} if _wants_full_data(recipe) else {}),
        "tuning_seconds": [facts["seconds"] for facts in run.tuning.values()],
        "test_hash": questions_hash(prepared.splits.parts()[part]),
        "tallrec": info["tallrec"],
    }
