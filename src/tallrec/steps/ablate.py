"""The ablation step: the parts are ordinary runs, each made once and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tallrec.data.prepared import read_prepared
from tallrec.evaluate import (
    Part,
    Result,
    ablation_page,
    by_shots,
    summarize_ablation,
    to_png,
)
from tallrec.evaluate.ablation import AT, BOTH, NEITHER, RT
from tallrec.evaluate.plots import shots_figure
from tallrec.files import write_atomically
from tallrec.llm.backbone import Backbone
from tallrec.recipe import BackboneRecipe, Recipe
from tallrec.run import RunDir, open_run
from tallrec.steps.data import Say, prepare_recipe
from tallrec.steps.runs import run_recipe
from tallrec.steps.score import read_scores
from tallrec.steps.tune import load, tune_recipe


@dataclass(frozen=True)
class _Planned:
    stages: str
    shots: int
    recipe: Recipe
    path: Path


def ablate(
    recipes: Sequence[Recipe],
    out: Path,
    *,
    shots: Sequence[int],
    seeds: Sequence[int],
    data: Path | None = None,
    say: Say = print,
) -> str:
    """Runs neither stage, either and both of each recipe, over shots and seeds, on the same data.

    Every part is a run directory in `out`; the same call goes on where one was cut off, with more
    shots too. Stages on instructions are tuned once for all parts, and for all recipes in which
    they, the backbone and the adapter's shape are the same.

    Args:
        recipes: Each with stages on instructions and one on shots, and a name of its own.
        out: The folder of the runs, `report.md`, `report.json` and a plot for each recipe.
        shots: Numbers of shots.
        seeds: Seeds of each number of shots.
        data: A prepared folder instead of the first recipe's own data.
        say: Shows a line to the user.

    Returns:
        The page that was written to `report.md`.

    Raises:
        ValueError: If a recipe lacks a stage, or something else is not right.
    """
    _check(recipes, shots, seeds)
    out.mkdir(parents=True, exist_ok=True)
    folder = data or prepare_recipe(recipes[0].data, out / "data", say=say)
    workshop = _Workshop(out, folder, say)
    test = read_prepared(folder).splits.test
    results: list[Result] = []
    files: dict[str, bytes] = {}
    for recipe in recipes:
        parts = workshop.run(_plan(recipe, out, workshop.instruct(recipe), shots, seeds))
        resamples = recipe.evaluation.resamples
        results.append(summarize_ablation(parts, test.labels, test.users, resamples=resamples))
        files[f"{recipe.name}.png"] = to_png(shots_figure(by_shots(parts)))
    page = ablation_page(results, list(files))
    files["report.json"] = (json.dumps(results, indent=2, allow_nan=False) + "\n").encode()
    files["report.md"] = page.encode()
    for name, content in files.items():
        write_atomically(out / name, content)
    return page


class _Workshop:
    """Runs parts one after the other; loads a backbone once, and only if something is to do."""

    def __init__(self, out: Path, data: Path, say: Say) -> None:
        self.out, self.data, self.say = out, data, say
        self.backbones: dict[BackboneRecipe, Backbone] = {}
        self.instructed: list[Recipe] = []

    def instruct(self, recipe: Recipe) -> Path:
        """The adapter after the stages on instructions, tuned if no recipe before had the same."""
        wanted = recipe.model_copy(update={"stages": recipe.instruction_stages, "seeds": (0,)})
        same = [
            n
            for n, other in enumerate(self.instructed)
            if (other.stages, other.backbone, other.lora)
            == (wanted.stages, wanted.backbone, wanted.lora)
        ]
        number = same[0] if same else len(self.instructed)
        path = self.out / f"instructions-{number}"
        if not same:
            self.instructed.append(wanted)
            self.say(f"AT, shared by all parts that have it: {path}")
            backbone = self._backbone(wanted, path)
            tune_recipe(wanted, path, data=self.data, backbone=backbone, say=self.say)
        return RunDir(path, wanted).stage(len(wanted.stages) - 1) / "adapter"

    def run(self, plan: Sequence[_Planned]) -> list[Part]:
        """Runs what is not finished; returns the parts with their reports and scores."""
        parts = []
        for number, planned in enumerate(plan, start=1):
            path, recipe = planned.path, planned.recipe
            self.say(f"Part {number} of {len(plan)} of {recipe.name}: {path}")
            result = run_recipe(
                recipe,
                path,
                data=self.data,
                backbone=self._backbone(recipe, path),
                say=self.say,
            )
            scores = read_scores(RunDir(path, recipe), path)
            parts.append(Part(planned.stages, planned.shots, result, scores))
        return parts

    def _backbone(self, recipe: Recipe, path: Path) -> Backbone | None:
        """The recipe's backbone; None where the run is finished, which needs none."""
        if path.exists() and open_run(path).evaluated:
            return None
        bare = recipe.backbone.model_copy(update={"adapter": None})
        if bare not in self.backbones:
            self.backbones[bare] = load(recipe, say=self.say)
        return self.backbones[bare]


def _check(recipes: Sequence[Recipe], shots: Sequence[int], seeds: Sequence[int]) -> None:
    for recipe in recipes:
        if not recipe.instruction_stages or recipe.shots_stage is None:
            raise ValueError(
                f"the recipe {recipe.name} has not both kinds of stages, so there is nothing to "
                f"ablate: give it [[stages]] with data = 'instructions' and then 'shots'"
            )
    names = [recipe.name for recipe in recipes]
    if len(set(names)) < len(names):
        raise ValueError(f"the recipes need names of their own; got {', '.join(names)}")
    if not shots or min(shots) < 1 or not seeds:
        raise ValueError("give at least one number of shots, each 1 or more, and one seed")


def _plan(
    recipe: Recipe, out: Path, adapter: Path, shots: Sequence[int], seeds: Sequence[int]
) -> list[_Planned]:
    """The parts of one recipe, those without shots first."""
    # Absolute, so that the same call from another folder finds the same recipes.
    instructed = recipe.backbone.model_copy(update={"adapter": str(adapter.resolve())})
    starts = {NEITHER: recipe.backbone, AT: instructed, RT: recipe.backbone, BOTH: instructed}
    folder = out / recipe.name
    plan = []
    for stages, name in ((NEITHER, "neither"), (AT, "at")):
        update = {"backbone": starts[stages], "stages": (), "seeds": (seeds[0],)}
        plan.append(_Planned(stages, 0, recipe.model_copy(update=update), folder / name))
    for count in sorted(set(shots)):
        for stages, name in ((RT, "rt"), (BOTH, "at-rt")):
            update = {
                "backbone": starts[stages],
                "stages": recipe.stages[-1:],
                "seeds": tuple(seeds),
                "shots": recipe.shots.model_copy(update={"count": count}),
            }
            part = recipe.model_copy(update=update)
            plan.append(_Planned(stages, count, part, folder / f"{name}-{count}"))
    return plan
