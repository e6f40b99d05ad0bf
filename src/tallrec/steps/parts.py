"""The parts of an ablation or a reproduction: ordinary runs, each made once and kept."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tallrec.data.prepared import read_prepared
from tallrec.data.samples import in_blocks
from tallrec.evaluate import Part
from tallrec.evaluate.ablation import AT, BOTH, NEITHER, RT
from tallrec.llm.backbone import Backbone
from tallrec.progress import in_words
from tallrec.recipe import BackboneRecipe, Recipe
from tallrec.run import RunDir, open_run
from tallrec.steps.data import Say
from tallrec.steps.runs import run_recipe
from tallrec.steps.score import read_scores
from tallrec.steps.stages import scorer_of
from tallrec.steps.tune import load, orders_of, shots_of, tune_recipe
from tallrec.types import Samples

_TRIAL_ROWS = 16
_TUNING_TO_SCORING = 3.0  # a backward pass costs about two forward passes


@dataclass(frozen=True)
class Planned:
    """A run to be made.

    Attributes:
        stages: `NEITHER`, `AT`, `RT` or `BOTH`.
        shots: Shots of RT, 0 without it.
        recipe: What the run does.
        path: Its folder.
        data: The prepared folder it works on.
    """

    stages: str
    shots: int
    recipe: Recipe
    path: Path
    data: Path

    @property
    def finished(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.path.exists() and open_run(self.path).evaluated


def plan_parts(
    recipe: Recipe,
    folder: Path,
    data: Path,
    *,
    adapter: Path | None,
    shots: Sequence[int],
    seeds: Sequence[int],
) -> list[Planned]:
    """The parts of one recipe, those without shots first.

    Args:
        recipe: A recipe with a stage on shots.
        folder: Where their run directories go.
        data: A prepared folder.
        adapter: What the stages on instructions gave; without it there are no parts that start
            from it.
        shots: Numbers of shots.
        seeds: Seeds of each number of shots.
    """
    starts = {NEITHER: recipe.backbone, RT: recipe.backbone}
    if adapter is not None:
        # Absolute, so that the same call from another folder finds the same recipes.
        given = {"adapter": str(adapter.resolve())}
        starts[AT] = starts[BOTH] = recipe.backbone.model_copy(update=given)

    def part(which: str, name: str, count: int, **changes: object) -> Planned:
        changed = recipe.model_copy(update={"backbone": starts[which], **changes})
        return Planned(which, count, changed, folder / name, data)

    plan = [
        part(stages, name, 0, stages=(), seeds=(seeds[0],))
        for stages, name in ((NEITHER, "neither"), (AT, "at"))
        if stages in starts
    ]
    for count in sorted(set(shots)):
        drawn = recipe.shots.model_copy(update={"count": count})
        plan += [
            part(
                stages,
                f"{name}-{count}",
                count,
                stages=recipe.stages[-1:],
                seeds=tuple(seeds),
                shots=drawn,
            )
            for stages, name in ((RT, "rt"), (BOTH, "at-rt"))
            if stages in starts
        ]
    return plan


class Workshop:
    """Makes parts one after the other; loads a backbone once, and only if something is to do.

    Args:
        out: Where the adapters that parts share go.
        say: Shows a line to the user.
    """

    def __init__(self, out: Path, say: Say) -> None:
        self.out, self.say = out, say
        self._backbones: dict[tuple[BackboneRecipe, bool], Backbone] = {}
        self._instructed: list[Recipe] = []

    def instruct(self, recipe: Recipe, data: Path) -> Path:
        """The adapter after the stages on instructions, tuned if no recipe before had the same."""
        wanted = recipe.model_copy(update={"stages": recipe.instruction_stages, "seeds": (0,)})
        same = [
            n
            for n, other in enumerate(self._instructed)
            if (other.stages, other.backbone, other.lora)
            == (wanted.stages, wanted.backbone, wanted.lora)
        ]
        number = same[0] if same else len(self._instructed)
        path = self.out / f"instructions-{number}"
        adapter = RunDir(path, wanted).stage(len(wanted.stages) - 1) / "adapter"
        if not same:
            self._instructed.append(wanted)
            self.say(f"AT, shared by all parts that have it: {path}")
            backbone = None if adapter.is_dir() else self.backbone(wanted)
            tune_recipe(wanted, path, data=data, backbone=backbone, say=self.say)
        return adapter

    def run(self, plan: Sequence[Planned]) -> list[Part]:
        """Runs what is not finished; returns the parts with their reports and scores."""
        parts = []
        for number, (planned, left) in enumerate(self._with_time_left(plan), start=1):
            self.say(f"Part {number} of {len(plan)}{left}: {planned.path}")
            result = run_recipe(
                planned.recipe,
                planned.path,
                data=planned.data,
                backbone=None if planned.finished else self.backbone(planned.recipe),
                say=self.say,
            )
            scores = read_scores(RunDir(planned.path, planned.recipe), planned.path)
            parts.append(Part(planned.stages, planned.shots, result, scores))
        return parts

    def backbone(self, recipe: Recipe) -> Backbone:
        """A recipe's backbone without any adapter."""
        bare = recipe.backbone.model_copy(update={"adapter": None}), recipe.in_int8
        if bare not in self._backbones:
            self._backbones[bare] = load(recipe, say=self.say)
        return self._backbones[bare]

    def _with_time_left(self, plan: Sequence[Planned]) -> Iterator[tuple[Planned, str]]:
        """Each part with how long all that is left will take, in words.

        A trial on this machine gives the first estimate; what parts then take corrects it.
        """
        unfinished = [planned for planned in plan if not planned.finished]
        seconds = {p.path: _estimate(p, self.backbone(p.recipe)) for p in unfinished}
        estimated, spent = 0.0, 0.0
        for planned in plan:
            left = sum(seconds.values()) * (spent / estimated if estimated else 1.0)
            started = time.monotonic()
            yield planned, f" (about {in_words(left)} left)" if left else ""
            estimated += seconds.pop(planned.path, 0.0)
            spent += time.monotonic() - started


def _estimate(planned: Planned, backbone: Backbone) -> float:
    """Seconds that a part will take, from a forward pass over a few of its rows."""
    recipe, prepared = planned.recipe, read_prepared(planned.data)
    scorer = scorer_of(recipe, backbone, backbone.model, prepared.info.domain)

    def seconds(samples: Samples) -> float:
        started = time.monotonic()
        scorer(samples)
        return (time.monotonic() - started) / len(samples)

    test = prepared.splits.test
    seconds(test[:1])  # what only a first pass does
    total = len(test) * seconds(in_blocks(test[:_TRIAL_ROWS], recipe.evaluation.block))
    stage = recipe.shots_stage
    if stage is not None:
        shots, _ = shots_of(recipe, prepared, recipe.seeds[0])
        rows = recipe.shots.count * orders_of(recipe.shots, recipe.shots.count)
        row = seconds(shots[:_TRIAL_ROWS])
        total += rows * stage.epochs * _TUNING_TO_SCORING * row
    return total * len(recipe.seeds)
