"""Which stage of tuning helps: neither, either or both, over shots (TALLRec, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tallrec.evaluate.metrics import METRICS
from tallrec.evaluate.render import READING, difference_rows, figure_rows, markdown_table
from tallrec.evaluate.report import best_counting, paired_differences
from tallrec.evaluate.schema import (
    COUNTING,
    MODEL,
    Difference,
    Evaluation,
    Result,
    System,
    SystemResult,
)
from tallrec.types import BoolArray, FloatArray, IntArray

NEITHER, AT, RT, BOTH = "neither", "AT", "RT", "AT + RT"

_STAGES = """\
**AT** is tuning on general instructions (Alpaca tuning), **RT** tuning on recommendation \
shots."""

_PAIRED = """\
Differences are paired: same samples, same resamples of the users. A verdict is `better` or \
`worse` where the interval leaves out 0; `not distinguishable` means that this test cannot tell."""


@dataclass(frozen=True)
class Part:
    """One run of an ablation.

    Attributes:
        stages: `NEITHER`, `AT`, `RT` or `BOTH`.
        shots: Shots of RT, 0 without it.
        result: Its report.
        scores: Log-odds of the test samples, shape [n_seeds, n].
    """

    stages: str
    shots: int
    result: Result
    scores: FloatArray

    @property
    def name(self) -> str:
        """What its row is called."""
        return f"{self.stages}, {self.shots} shots" if self.shots else self.stages


def summarize_ablation(
    parts: Sequence[Part], labels: BoolArray, users: IntArray, *, resamples: int
) -> Result:
    """Merges the parts' reports in one, with what each stage changes in place of counting.

    Args:
        parts: The runs of one recipe.
        labels: True where the user liked the target, shape [n].
        users: Equal codes mean the same user, shape [n].
        resamples: Bootstrap resamples of the users.
    """
    evaluation = Evaluation(labels, users, tuple(System(p.name, MODEL, p.scores) for p in parts))
    counting = _counting(parts)
    first = parts[0].result
    return {
        **first,
        "metadata": {
            **{key: first["metadata"][key] for key in ("recipe", "template", "test_hash")},
            "runs": {part.name: part.result["metadata"] for part in parts},
        },
        "systems": [*(_model(part, part.name) for part in parts), *counting],
        "best_counting": best_counting(counting),
        "differences": paired_differences(evaluation, _pairs(parts), resamples),
        "warnings": [],
    }


def by_shots(parts: Sequence[Part]) -> dict[str, Result]:
    """The parts as `shots_figure` wants them: one line for each choice of stages."""
    return {
        part.name: {
            **part.result,
            "systems": [
                _model(part, part.stages),
                *(s for s in part.result["systems"] if s["kind"] == COUNTING and part.stages == RT),
            ],
        }
        for part in parts
    }


def ablation_page(results: Sequence[Result], plots: Sequence[str]) -> str:
    """The Markdown page of an ablation.

    Args:
        results: From `summarize_ablation`, one a recipe.
        plots: The file name of each one's plot, beside the page.
    """
    sections = ["# Ablation of the stages", _STAGES]
    for result, plot in zip(results, plots, strict=True):
        facts = result["metadata"]
        sections += [
            f"## {facts['recipe']} (template {facts['template']})",
            markdown_table(*figure_rows(result)),
            "### What a stage changes",
            findings(result["differences"]),
            markdown_table(*difference_rows(result["differences"], "compared with")),
            f"![AUC and GAUC by shots, {facts['recipe']}]({plot})",
        ]
    sections += ["## How to read this", READING.format(**results[0]), _PAIRED]
    return "\n\n".join(sections) + "\n"


def _model(part: Part, name: str) -> SystemResult:
    return {**part.result["systems"][0], "name": name}


def _counting(parts: Sequence[Part]) -> list[SystemResult]:
    """Counting on the shots of each number; once, where it learns nothing from them."""
    found: dict[str, dict[int, SystemResult]] = {}
    for part in parts:
        for system in part.result["systems"] if part.shots else ():
            if system["kind"] == COUNTING:
                found.setdefault(system["name"], {})[part.shots] = system
    rows: list[SystemResult] = []
    for name, systems in found.items():
        first = next(iter(systems.values()))
        if all(system["metrics"] == first["metrics"] for system in systems.values()):
            rows.append(first)
        else:
            rows += [{**s, "name": f"{name}, {shots} shots"} for shots, s in systems.items()]
    return rows


def _pairs(parts: Sequence[Part]) -> list[tuple[str, str]]:
    """Each part with the parts that lack one of its stages."""
    without = {AT: (NEITHER,), RT: (NEITHER,), BOTH: (AT, RT)}
    there = {(part.stages, part.shots): part.name for part in parts}
    pairs = []
    for part in parts:
        for stages in without.get(part.stages, ()):
            baseline = there.get((stages, part.shots if stages == RT else 0))
            if baseline is not None:
                pairs.append((part.name, baseline))
    return pairs


def findings(differences: Sequence[Difference]) -> str:
    """The comparisons by AUC as Markdown, one line each."""
    return "\n".join(
        f"- {d['system']} is {d['verdict']} "
        f"{'than' if d['verdict'] in ('better', 'worse') else 'from'} {d['baseline']} in "
        f"{METRICS[d['metric']].title}."
        for d in differences
        if d["metric"] == "auc"
    )
