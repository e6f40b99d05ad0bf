"""Transfer: tuned on one domain or on all, measured on each (TALLRec, section 4.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tallrec.evaluate import (
    MODEL,
    Column,
    Evaluation,
    System,
    findings,
    matrix_page,
    paired_differences,
    summarize,
)
from tallrec.evaluate.ablation import BOTH, NEITHER, RT
from tallrec.recipe import Recipe
from tallrec.run import open_run
from tallrec.steps.paper_tables import counted, name_of, write_files
from tallrec.steps.parts import Planned
from tallrec.steps.reproduction import Reproduction
from tallrec.steps.score import questions_of, score_seeds

_MIXED = " + "
_UNTUNED = "not tuned"


def cross_domain(reproduction: Reproduction) -> str:
    """Tunes on each domain and on equal shares of all, and measures each on every domain.

    Returns:
        The page that was written to `cross-domain/report.md`.

    Raises:
        ValueError: If there are not two domains or more, or not one number of shots.
    """
    domains = list(reproduction.folders)
    if len(domains) < 2:
        raise ValueError(
            "transfer needs two domains, and there is only 'movie': give --data, a prepared folder "
            "of another domain or a local copy of Book-Crossing"
        )
    if len(set(reproduction.shots)) > 1:
        raise ValueError("transfer is measured at one number of shots: give one as --shots")
    plan = [tuned for recipe in reproduction.recipes for tuned in _plan(reproduction, recipe)]
    reproduction.workshop.run([planned for _, _, planned in plan])
    columns, verdicts = [], []
    for domain in domains:
        systems = tuple(_systems(reproduction, domain, plan))
        test = reproduction.prepared[domain].splits.test
        evaluation = Evaluation(test.labels, test.users, systems)
        resamples = reproduction.recipes[0].evaluation.resamples
        shots = reproduction.shots[0]
        columns.append(Column(domain, shots, summarize(evaluation, resamples)))
        pairs = _pairs(reproduction, domain, domains)
        differences = paired_differences(evaluation, pairs, resamples)
        verdicts.append(f"**Tested on {domain}s**\n\n{findings(differences)}")
    intro = (
        f"All tuned on {reproduction.shots[0]} shots; where domains are mixed, on as many from "
        "each. Counting is fitted on the shots of the domain that is tested."
    )
    page = matrix_page("Transfer across domains", intro, "tuned on", columns, verdicts)
    write_files(reproduction.out / "cross-domain", page, columns, {})
    return page


def _plan(reproduction: Reproduction, recipe: Recipe) -> Iterator[tuple[Recipe, str, Planned]]:
    """Each run with what it was tuned on; of the untuned, which is the same for all, one."""
    tuned = BOTH if reproduction.instructed else RT
    for n, (domain, folder) in enumerate(reproduction.folders.items()):
        for planned in reproduction.plan(recipe, reproduction.out / domain, folder):
            if planned.stages == tuned:
                yield recipe, domain, planned
            elif planned.stages == NEITHER and n == 0:
                yield recipe, _UNTUNED, planned
    first, *others = reproduction.folders.values()
    together = _MIXED.join(reproduction.folders)
    mixed_with = tuple(str(other.resolve()) for other in others)
    data = recipe.data.model_copy(update={"mixed_with": mixed_with})
    mixed = recipe.model_copy(update={"data": data})
    folder = reproduction.out / together.replace(_MIXED, "+")
    for planned in reproduction.plan(mixed, folder, first):
        if planned.stages == tuned:
            yield recipe, together, planned


def _systems(
    reproduction: Reproduction, domain: str, plan: Sequence[tuple[Recipe, str, Planned]]
) -> Iterator[System]:
    for recipe, tuned_on, planned in plan:
        run = open_run(planned.path)
        samples = questions_of(run, reproduction.prepared[domain], "test")
        own = planned.data == reproduction.folders[domain]
        out = planned.path if own else planned.path / f"on-{domain}"
        out.mkdir(exist_ok=True)
        scores = score_seeds(
            run,
            samples,
            out,
            domain=domain,
            backbone=reproduction.workshop.backbone(recipe),
            say=reproduction.say,
        )
        yield System(name_of(recipe, tuned_on), MODEL, scores)
    yield from counted(reproduction, domain, reproduction.shots[0])


def _pairs(
    reproduction: Reproduction, domain: str, domains: Sequence[str]
) -> list[tuple[str, str]]:
    """What transfer is judged by: other domains against not tuned, and all together against own."""
    pairs = []
    for recipe in reproduction.recipes:
        others = [other for other in domains if other != domain]
        pairs += [(name_of(recipe, other), name_of(recipe, _UNTUNED)) for other in others]
        pairs.append((name_of(recipe, _MIXED.join(domains)), name_of(recipe, domain)))
    return pairs
