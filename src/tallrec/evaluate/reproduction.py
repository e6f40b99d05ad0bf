"""The paper's tables beside what was measured here: pages, CSV, and the order of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from tallrec.evaluate.metrics import METRICS
from tallrec.evaluate.published import PAPERS_MODEL, TABLE_1
from tallrec.evaluate.render import READING, data_in_words, markdown_table, with_interval
from tallrec.evaluate.schema import COUNTING, MODEL, Result, SystemResult

_NOTHING = "n/a"
_SHOWN = ("auc", "gauc")


@dataclass(frozen=True)
class Column:
    """What was measured on one domain's test samples with one number of shots.

    Attributes:
        domain: The noun for an item.
        shots: How many samples were tuned on, 0 where that says nothing.
        result: Every system's figures.
    """

    domain: str
    shots: int
    result: Result


def table_page(title: str, intro: str, columns: Sequence[Column], plots: Mapping[str, str]) -> str:
    """A page with a section for each domain: the paper's AUC, ours, and our GAUC.

    Args:
        title: Headline.
        intro: What the rows are.
        columns: What was measured, in order.
        plots: File name of each domain's plot, beside the page.
    """
    sections = [f"# {title}", intro]
    for domain in dict.fromkeys(column.domain for column in columns):
        own = [column for column in columns if column.domain == domain]
        sections += [
            f"## {domain.capitalize()}s",
            data_in_words(own[0].result["data"]),
            "AUC, as published and as measured here:",
            markdown_table(*_auc_rows(domain, own)),
            "GAUC, measured here (the paper has none):",
            markdown_table(*_gauc_rows(own)),
        ]
        if domain in plots:
            sections.append(f"![AUC and GAUC by shots, {domain}s]({plots[domain]})")
    sections += ["## How to read this", READING.format(**columns[0].result)]
    return "\n\n".join(sections) + "\n"


def matrix_page(
    title: str, intro: str, first: str, columns: Sequence[Column], findings: Sequence[str]
) -> str:
    """A page with one table: a row a system, AUC and GAUC on every domain.

    Args:
        title: Headline.
        intro: What the rows are.
        first: Heads the column of their names.
        columns: One a test domain.
        findings: What else there is to say, a paragraph each.
    """
    names = list(dict.fromkeys(s["name"] for c in columns for s in c.result["systems"]))
    header = [first]
    header += [f"{c.domain}s: {METRICS[m].title} [95 %]" for c in columns for m in _SHOWN]
    rows = [
        [
            name,
            *(
                _cell(_system(column.result, name), metric)
                for column in columns
                for metric in _SHOWN
            ),
        ]
        for name in names
    ]
    sections = [
        f"# {title}",
        intro,
        "\n".join(f"- {c.domain}s: {data_in_words(c.result['data'])}" for c in columns),
        markdown_table(header, rows),
        *findings,
        "## How to read this",
        READING.format(**columns[0].result),
    ]
    return "\n\n".join(sections) + "\n"


def long_table(columns: Sequence[Column]) -> pl.DataFrame:
    """Every figure as a row of its own: domain, shots, system, metric, paper and ours."""
    rows = [
        {
            "domain": column.domain,
            "shots": column.shots,
            "system": system["name"],
            "kind": system["kind"],
            "metric": metric,
            "paper": _paper(column, system["name"]) if metric == "auc" else None,
            "ours": figures["mean"],
            "low": figures["low"],
            "high": figures["high"],
            "sd": figures["sd"],
            "seeds": len(figures["per_seed"]),
        }
        for column in columns
        for system in column.result["systems"]
        for metric, figures in system["metrics"].items()
    ]
    floats = dict.fromkeys(("paper", "ours", "low", "high", "sd"), pl.Float64)
    return pl.DataFrame(rows, schema_overrides=floats)


def _auc_rows(domain: str, columns: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    names = _names(domain, columns)
    header, cells = ["system"], [names]
    for column in columns:
        published = [_paper(column, name) for name in names]
        if any(published):
            header.append(f"{column.shots}: paper")
            cells.append([f"{auc:.3f}" if auc else _NOTHING for auc in published])
        header.append(f"{column.shots}: ours [95 %]")
        cells.append([_cell(_system(column.result, name), "auc") for name in names])
    return header, [list(row) for row in zip(*cells, strict=True)]


def _gauc_rows(columns: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    header = ["system", *(f"{column.shots} [95 %]" for column in columns)]
    rows = [
        [name, *(_cell(_system(column.result, name), "gauc") for column in columns)]
        for name in dict.fromkeys(s["name"] for c in columns for s in c.result["systems"])
    ]
    return header, rows


def _names(domain: str, columns: Sequence[Column]) -> list[str]:
    """The paper's recommenders, its model, the models measured here, and counting."""
    kinds = {s["name"]: s["kind"] for column in columns for s in column.result["systems"]}
    papers = [PAPERS_MODEL] if domain in TABLE_1 else []
    recommenders = [name for name, kind in kinds.items() if kind not in (MODEL, COUNTING)]
    models = [name for name, kind in kinds.items() if kind == MODEL]
    counting = [name for name, kind in kinds.items() if kind == COUNTING]
    return [*recommenders, *papers, *models, *counting]


def _paper(column: Column, name: str) -> float | None:
    return TABLE_1.get(column.domain, {}).get(name, {}).get(column.shots)


def _system(result: Result, name: str) -> SystemResult | None:
    return next((s for s in result["systems"] if s["name"] == name), None)


def _cell(system: SystemResult | None, metric: str) -> str:
    return with_interval(system["metrics"][metric]) if system else _NOTHING
