"""Whole runs: from recipe to report, what a run is in a few words, and removing one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tallrec.data.prepared import read_prepared
from tallrec.evaluate import Result
from tallrec.llm.backbone import Backbone
from tallrec.processes import is_first
from tallrec.recipe import Recipe
from tallrec.run import RunDir, create_run, open_run
from tallrec.steps.data import Say
from tallrec.steps.evaluate import evaluate_run, read_report, stages_in_words
from tallrec.steps.tune import check_same_data, tune_recipe


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    data: Path | None = None,
    backbone: Backbone | None = None,
    say: Say = print,
) -> Result:
    """Does all that a recipe says, from data to report, or what is left of it to do.

    Of a finished run nothing is computed again; its report is given back. Of several processes that
    tune together, the first one measures afterwards; the others end.

    Args:
        recipe: What to do.
        out: The run directory.
        data: A prepared folder instead of the recipe's own data.
        backbone: The recipe's backbone, if it is loaded already.
        say: Shows a line to the user.

    Raises:
        ValueError: If something is not right; see the steps that raise it.
    """
    if out.exists() and any(out.iterdir()) and (run := create_run(out, recipe)).evaluated:
        if data is not None:
            check_same_data(run, data, read_prepared(data))
        say(f"{out} is finished: nothing was computed again")
        return read_report(out)
    tune_recipe(recipe, out, data=data, backbone=backbone, say=say)
    if not is_first():
        raise SystemExit(0)
    return evaluate_run(out, backbone=backbone, say=say)


def summary(run: RunDir) -> dict[str, Any]:
    """A run in a few words: what it is, how far it came and what it reached."""
    recipe, info = run.recipe, run.info
    done = sum(1 for name in run.tuning if name.startswith("seed"))
    state = "evaluated" if run.evaluated else "tuned" if run.tuned else f"{done} seeds tuned"
    facts = {
        "run": str(run.path),
        "recipe": recipe.name,
        "state": state,
        "backbone": recipe.backbone.source,
        "template": recipe.template,
        "stages": stages_in_words(run),
        "shots": recipe.shots.count if recipe.shots_stage else 0,
        "seeds": ", ".join(map(str, recipe.seeds)),
        "started": info["started"],
    }
    if run.evaluated:
        model = read_report(run.path)["systems"][0]["metrics"]
        for metric in ("auc", "gauc"):
            value = model[metric]["mean"]
            facts[metric] = "n/a" if value is None else f"{value:.3f}"
    return facts


def details(run: RunDir) -> dict[str, Any]:
    """All that a run's record says: its summary, where it came from, and how to repeat it."""
    facts = {**summary(run), "repeat": run.repeat, **run.info, "tuning": run.tuning}
    known: dict[str, Any] = _without_none(facts)
    return known


def _without_none(value: Any) -> Any:
    """TOML has no word for what is not there."""
    if not isinstance(value, dict):
        return value
    return {key: _without_none(inner) for key, inner in value.items() if inner is not None}


def remove_run(path: Path) -> None:
    """Removes a run directory, and nothing that is not one.

    Raises:
        ValueError: If the folder is not a run directory, or a process is working on it.
    """
    run = open_run(path)
    with run.locked():
        shutil.rmtree(path)
