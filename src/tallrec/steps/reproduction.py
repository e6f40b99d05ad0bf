"""What all reproduced tables share: one folder of runs; what is missing is run, what is there kept.

runs/reproduce/
  movie/data/                         the prepared folder of a domain, unless one was given
  instructions-0/                     the adapter after Alpaca tuning, shared by all
  movie/two-stages/rt-64/             run directories, shared by all tables
  movie/baselines-64/seed-0/          scores of the paper's recommenders
  table1/, ablation/, cross-domain/   report.md, report.csv, report.json, plots
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tallrec.data.prepared import Prepared, read_prepared
from tallrec.evaluate import Part
from tallrec.recipe import Recipe
from tallrec.steps.data import Say, load_dataset, prepare, prepare_recipe
from tallrec.steps.parts import Planned, Workshop, plan_parts


@dataclass(frozen=True)
class Made:
    """A finished run of a table."""

    domain: str
    recipe: Recipe
    part: Part


@dataclass(frozen=True)
class Reproduction:
    """What all tables have in common.

    Attributes:
        out: The folder of runs and reports.
        recipes: Recipes with a stage on instructions and one on shots, each with its own name.
        folders: The prepared folder of each domain.
        shots: Numbers of shots.
        seeds: Seeds of each number of shots.
        instructed: Whether there are instructions for the first stage; without, parts that need
            it are left out.
        say: Shows a line to the user.

    Raises:
        ValueError: If there are no shots or no seeds.
    """

    out: Path
    recipes: Sequence[Recipe]
    folders: Mapping[str, Path]
    shots: Sequence[int]
    seeds: Sequence[int]
    instructed: bool
    say: Say = print

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 1 or not self.seeds:
            raise ValueError("give at least one number of shots, each 1 or more, and one seed")

    @cached_property
    def prepared(self) -> dict[str, Prepared]:
        """The domains' prepared folders in memory."""
        return {domain: read_prepared(folder) for domain, folder in self.folders.items()}

    @cached_property
    def workshop(self) -> Workshop:
        """What makes the runs."""
        return Workshop(self.out, self.say)

    def make(self, stages: Sequence[str]) -> list[Made]:
        """Makes the parts with these stages, of all domains and recipes, where they are missing."""
        plan = [
            (domain, recipe, planned)
            for domain, folder in self.folders.items()
            for recipe in self.recipes
            for planned in self.plan(recipe, self.out / domain, folder)
            if planned.stages in stages
        ]
        parts = self.workshop.run([planned for _, _, planned in plan])
        return [Made(*one[:2], part) for one, part in zip(plan, parts, strict=True)]

    def plan(self, recipe: Recipe, folder: Path, data: Path) -> list[Planned]:
        """The parts of a recipe on a prepared folder."""
        return plan_parts(
            recipe,
            folder / recipe.name,
            data,
            adapter=self.workshop.instruct(recipe, data) if self.instructed else None,
            shots=self.shots,
            seeds=self.seeds,
        )


def domain_folders(
    paths: Sequence[Path], out: Path, recipe: Recipe, *, say: Say = print
) -> dict[str, Path]:
    """The prepared folder of each domain; the paper's movies are made where none is given.

    Args:
        paths: Prepared folders, or a local copy of Book-Crossing as published.
        out: Where folders are made: `out / DOMAIN / "data"`.
        recipe: Says how the movies are prepared.
        say: Shows a line to the user.

    Raises:
        ValueError: If two are of one domain, or one cannot be read.
    """
    folders: dict[str, Path] = {}
    for path in paths:
        folder = path if (path / "prepared.json").is_file() else _books(path, out, say)
        domain = read_prepared(folder).info.domain
        if domain in folders:
            raise ValueError(f"{folders[domain]} and {folder} are both of the domain {domain!r}")
        folders[domain] = folder
    if "movie" not in folders:
        movies = prepare_recipe(recipe.data, out / "movie" / "data", say=say)
        folders = {"movie": movies, **folders}
    return folders


def _books(path: Path, out: Path, say: Say) -> Path:
    """Book-Crossing as published, prepared by the paper's rule."""
    folder = out / "book" / "data"
    if not folder.exists():
        dataset = load_dataset("book-crossing", source=path, say=say)
        prepare(dataset, folder, split="paper")
    return folder
