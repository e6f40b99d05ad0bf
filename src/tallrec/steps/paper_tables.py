"""Table 1 and the ablation of the paper, beside the published figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from tallrec.evaluate import (
    MODEL,
    Column,
    Evaluation,
    System,
    long_table,
    summarize,
    table_page,
    to_png,
)
from tallrec.evaluate.ablation import AT, BOTH, NEITHER, RT
from tallrec.evaluate.plots import shots_figure
from tallrec.evaluate.published import PAPERS_MODEL, TABLE_1
from tallrec.files import write_atomically
from tallrec.recipe import Baseline, Recipe
from tallrec.steps.ablate import write_ablation
from tallrec.steps.baselines import count, score_sequential
from tallrec.steps.reproduction import Made, Reproduction


def table_1(reproduction: Reproduction) -> str:
    """Table 1 of the paper: its recommenders and the tuned model by shots, in each domain.

    Returns:
        The page that was written to `table1/report.md`.
    """
    made = reproduction.make((RT, BOTH))
    columns = [
        _column(reproduction, domain, shots, made, with_baselines=True)
        for domain in reproduction.folders
        for shots in sorted(set(reproduction.shots))
    ]
    intro = (
        "The paper's recommenders are fitted, and the model is tuned, on the same shots; RT is "
        "tuning on shots alone, AT + RT on instructions before. The paper's TALLRec is LLaMA-7B "
        "with both. Recommenders and counting read the latest "
        f"{_history(reproduction)} events; what the model reads, its recipe says."
    )
    return write_table(reproduction, "table1", "Table 1 of TALLRec", intro, columns)


def ablation(reproduction: Reproduction) -> str:
    """The paper's ablation: neither stage, either and both, by shots, in each domain.

    Returns:
        The page that was written to `ablation/report.md`; `ablation/DOMAIN/report.md` holds what
        each stage changes.

    Raises:
        ValueError: If there are no instructions to tune on.
    """
    if not reproduction.instructed:
        raise ValueError(
            "the ablation needs instructions for its first stage: give --instructions FILE, "
            "records in Alpaca's format"
        )
    made = reproduction.make((NEITHER, AT, RT, BOTH))
    for domain, prepared in reproduction.prepared.items():
        parts_of = [
            (recipe, [one.part for one in made if (one.domain, one.recipe) == (domain, recipe)])
            for recipe in reproduction.recipes
        ]
        write_ablation(reproduction.out / "ablation" / domain, parts_of, prepared.splits.test)
    columns = [
        _column(reproduction, domain, shots, made)
        for domain in reproduction.folders
        for shots in (0, *sorted(set(reproduction.shots)))
    ]
    links = ", ".join(f"[{domain}s]({domain}/report.md)" for domain in reproduction.folders)
    intro = (
        "AT is tuning on instructions (Alpaca tuning), RT tuning on shots; the paper publishes "
        f"figures of both together. What each stage changes, with intervals: {links}."
    )
    return write_table(reproduction, "ablation", "Ablation of the stages", intro, columns)


def write_table(
    reproduction: Reproduction, name: str, title: str, intro: str, columns: Sequence[Column]
) -> str:
    """Writes `report.md`, `report.csv`, `report.json` and a plot for each domain.

    Args:
        reproduction: Says where.
        name: The folder.
        title: Headline of the page.
        intro: What its rows are.
        columns: What was measured.

    Returns:
        The page.
    """
    domains = list(dict.fromkeys(column.domain for column in columns))
    plots = {domain: f"{domain}.png" for domain in domains}
    files = {plots[domain]: _plot(domain, columns) for domain in domains}
    page = table_page(title, intro, columns, plots)
    write_files(reproduction.out / name, page, columns, files)
    return page


def write_files(
    folder: Path, page: str, columns: Sequence[Column], plots: Mapping[str, bytes]
) -> None:
    """Writes a page with its plots and, as CSV and JSON, its figures."""
    folder.mkdir(parents=True, exist_ok=True)
    results = [{"domain": c.domain, "shots": c.shots, **c.result} for c in columns]
    files = {
        **plots,
        "report.csv": long_table(columns).write_csv().encode(),
        "report.json": (json.dumps(results, indent=2, allow_nan=False) + "\n").encode(),
        "report.md": page.encode(),
    }
    for file, content in files.items():
        write_atomically(folder / file, content)


def name_of(recipe: Recipe, what: str) -> str:
    """What a row is called: backbone, template and, in a word, what it was tuned on."""
    return f"{Path(recipe.backbone.source).name}, {recipe.template}, {what}"


def counted(reproduction: Reproduction, domain: str, shots: int) -> list[System]:
    """The counting baselines on the shots and histories of the paper."""
    prepared = reproduction.prepared[domain]
    return count(_plain(reproduction, shots), prepared, prepared.splits.test)


def _column(
    reproduction: Reproduction,
    domain: str,
    shots: int,
    made: Sequence[Made],
    *,
    with_baselines: bool = False,
) -> Column:
    prepared = reproduction.prepared[domain]
    test = prepared.splits.test
    systems = []
    if with_baselines:
        recipe = _plain(reproduction, shots)
        kept_in = reproduction.out / domain / f"baselines-{shots}"
        systems += score_sequential(recipe, prepared, test, kept_in, say=reproduction.say)
    systems += [
        System(name_of(one.recipe, one.part.stages), MODEL, one.part.scores)
        for one in made
        if (one.domain, one.part.shots) == (domain, shots)
    ]
    if shots:
        systems += counted(reproduction, domain, shots)
    resamples = reproduction.recipes[0].evaluation.resamples
    result = summarize(Evaluation(test.labels, test.users, tuple(systems)), resamples)
    result["metadata"]["shots"] = shots
    return Column(domain, shots, result)


def _plain(reproduction: Reproduction, shots: int) -> Recipe:
    """A recipe for what is no language model: all of the paper's recommenders, its histories."""
    recipe = reproduction.recipes[0]
    evaluation = {"block": 1, "baselines": get_args(Baseline)}
    return recipe.model_copy(
        update={
            "seeds": tuple(reproduction.seeds),
            "shots": recipe.shots.model_copy(update={"count": shots}),
            "evaluation": recipe.evaluation.model_copy(update=evaluation),
        }
    )


def _history(reproduction: Reproduction) -> str:
    return " or ".join({str(one.info.history): "" for one in reproduction.prepared.values()})


def _plot(domain: str, columns: Sequence[Column]) -> bytes:
    results = {str(column.shots): column.result for column in columns if column.domain == domain}
    published = TABLE_1.get(domain, {}).get(PAPERS_MODEL)
    reference = {f"{PAPERS_MODEL} (paper)": published} if published else None
    return to_png(shots_figure(results, reference))
