"""The ablation step: the parts are ordinary runs, each made once and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from tallrec.data.prepared import read_prepared
from tallrec.evaluate import Part, Result, ablation_page, by_shots, summarize_ablation, to_png
from tallrec.evaluate.plots import shots_figure
from tallrec.files import write_atomically
from tallrec.recipe import Recipe
from tallrec.steps.data import Say, prepare_recipe
from tallrec.steps.parts import Workshop, plan_parts
from tallrec.types import Samples


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
    workshop = Workshop(out, say)
    plans = [
        plan_parts(
            recipe,
            out / recipe.name,
            folder,
            adapter=workshop.instruct(recipe, folder),
            shots=shots,
            seeds=seeds,
        )
        for recipe in recipes
    ]
    made = iter(workshop.run([planned for plan in plans for planned in plan]))
    parts = [
        (recipe, list(islice(made, len(plan)))) for recipe, plan in zip(recipes, plans, strict=True)
    ]
    return write_ablation(out, parts, read_prepared(folder).splits.test)


def write_ablation(
    out: Path, parts_of: Sequence[tuple[Recipe, Sequence[Part]]], test: Samples
) -> str:
    """Writes what an ablation found; see `ablate`.

    Args:
        out: Where `report.md`, `report.json` and the plots go.
        parts_of: Each recipe and its parts.
        test: What the parts scored.

    Returns:
        The page.
    """
    out.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    files: dict[str, bytes] = {}
    for recipe, parts in parts_of:
        resamples = recipe.evaluation.resamples
        results.append(summarize_ablation(parts, test.labels, test.users, resamples=resamples))
        files[f"{recipe.name}.png"] = to_png(shots_figure(by_shots(parts)))
    page = ablation_page(results, list(files))
    files["report.json"] = (json.dumps(results, indent=2, allow_nan=False) + "\n").encode()
    files["report.md"] = page.encode()
    for name, content in files.items():
        write_atomically(out / name, content)
    return page


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
