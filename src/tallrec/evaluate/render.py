"""Results for people: Markdown, a terminal table, and the files of a run."""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tallrec.evaluate.metrics import METRICS
from tallrec.evaluate.schema import (
    COUNTING,
    AnswerResult,
    Data,
    Difference,
    MetricResult,
    Result,
    SystemResult,
)
from tallrec.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

_WITH_INTERVAL = ("auc", "gauc")
_CHANCE = "chance (a coin)"
_DPI = 150

READING = """\
**AUC** (pooled) is the chance that a random liked sample scores above a random disliked one, \
whoever they belong to; much of it is knowing which users like nearly everything. **GAUC** asks \
the same within each user and averages the users by their number of samples: what is left is \
taste. A coin reaches 0.5 in both. Log-loss, Brier and ECE judge the probabilities; lower is \
better.

Brackets hold 95 % intervals from {resamples:,} bootstrap resamples of the test users. They say \
how much another set of users would change a figure, not what other shots or seeds would: that is \
the spread, the standard deviation over seeds (in parentheses: how many)."""

_PICKED = """\
The best counting baseline is, metric by metric, the one that is highest on these very test \
samples: the hardest comparison. Differences are paired (same samples, same resamples)."""

_ANSWERS = """\
A score is log P(Yes) - log P(No) at the first word of the answer, where log-probabilities are \
given. If they hold only one of the two ("bounded"), the other is taken to be as likely as the \
least likely token given. If they hold neither, a Yes or No in the text counts as 90 %: a \
convention, which log-loss, Brier, ECE and the order among rows scored in the other way rest on. \
Equal scores are no order: AUC counts a pair that ties half (Mann-Whitney). A sample without a \
score, whose answer is a refusal or says neither, is left out of every metric above, which can \
flatter; "unscored by a coin" counts its pairs half as well."""

_ANSWER_LINES: tuple[tuple[str, Callable[[AnswerResult], str]], ...] = (
    ("asked", lambda a: _number(a["asked"], ",")),
    ("said Yes / No", lambda a: _two(a["said_yes"], a["said_no"])),
    ("refused", lambda a: _number(a["refused"], ",")),
    ("unparseable", lambda a: _number(a["unparseable"], ",")),
    (
        "scored by log-probability / by text",
        lambda a: _two(a["by_log_probability"], a["by_text"]),
    ),
    ("of these bounded", lambda a: _number(a["bounded"], ",")),
    ("share of Yes, by score", lambda a: _number(a["yes_share"], ".1%")),
    ("tied pairs, counted half", lambda a: _number(a["tied_pairs"], ".1%")),
    ("AUC, unscored by a coin", lambda a: _number(a["auc_all"])),
    (
        "tokens read / written",
        lambda a: _two(a["prompt_tokens"], a["completion_tokens"]),
    ),
    ("cost", lambda a: _number(a["cost"], ".4f")),
    ("asked again after an error", lambda a: _number(a["retries"], ",")),
)


def to_markdown(result: Result, plots: Mapping[str, str] | None = None) -> str:
    """Renders a result, or a comparison of several, as a Markdown page.

    Args:
        result: From `summarize` or `compare`.
        plots: Caption to file name of pictures that lie beside the page.
    """
    sections = ["# Evaluation", data_in_words(result["data"])]
    if result["warnings"]:
        sections.append("\n".join(f"> **Warning:** {text}  " for text in result["warnings"]))
    sections += [markdown_table(*figure_rows(result)), READING.format(**result)]
    if result["differences"]:
        sections += [
            "## Against counting",
            markdown_table(*difference_rows(result["differences"])),
            _PICKED,
        ]
    if asked := [system for system in result["systems"] if "answers" in system]:
        sections += ["## Answers", markdown_table(*answer_rows(asked)), _ANSWERS]
    if plots:
        sections.append("## Plots")
        sections += [f"![{caption}]({file})" for caption, file in plots.items()]
    if result["metadata"]:
        sections += ["## What was evaluated", "\n".join(_list(result["metadata"]))]
    return "\n\n".join(sections) + "\n"


def to_table(result: Result) -> "Table":
    """Renders a result, or a comparison of several, for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    header, rows = figure_rows(result)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.caption, table.caption_justify = data_in_words(result["data"]), "left"
    for i, title in enumerate(header):
        # On a narrow terminal the interval goes below its figure, but is never cut.
        width = len("[0.000,0.000]") if "[" in title else None
        table.add_column(Text(title), justify="right" if i else "left", min_width=width)
    kinds = [*(system["kind"] for system in result["systems"]), _CHANCE]
    for row, kind, following in zip(rows, kinds, [*kinds[1:], None], strict=True):
        style = {COUNTING: "", _CHANCE: "dim"}.get(kind, "bold")
        table.add_row(*map(Text, row), style=style, end_section=kind != following)
    return table


def write_report(
    directory: Path, result: Result, figures: Mapping[str, "Figure"] | None = None
) -> list[Path]:
    """Writes `report.json`, the pictures and `report.md`, each whole or not at all.

    Args:
        directory: Where to; made if missing.
        result: From `summarize` or `compare`.
        figures: Caption to figure (`tallrec.evaluate.plots`); "ROC" is written as `roc.png`.

    Returns:
        The files written, the page last.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = {"report.json": json.dumps(result, indent=2, allow_nan=False).encode() + b"\n"}
    plots = {}
    for caption, figure in (figures or {}).items():
        plots[caption] = caption.lower().replace(" ", "-") + ".png"
        files[plots[caption]] = to_png(figure)
    files["report.md"] = to_markdown(result, plots).encode()
    for name, content in files.items():
        write_atomically(directory / name, content)
    return [directory / name for name in files]


def to_png(figure: "Figure") -> bytes:
    """A figure as the content of a PNG file."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI)
    return picture.getvalue()


def figure_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the main table; the last row is chance."""
    spread = any(len(system["unscored"]) > 1 for system in result["systems"])
    header = ["system"]
    header += [
        f"{metric.title} [95 %]" if name in _WITH_INTERVAL else metric.title
        for name, metric in METRICS.items()
    ]
    rows = [[system["name"], *_figures_of(system)] for system in result["systems"]]
    rows.append([_CHANCE, *(_number(result["chance"][name]) for name in METRICS)])
    if spread:
        header.append("spread (AUC/GAUC)")
        for row, cell in zip(rows, [*map(_spread, result["systems"]), ""], strict=True):
            row.append(cell)
    return header, rows


def _figures_of(system: SystemResult) -> Iterator[str]:
    for name, metric in system["metrics"].items():
        yield with_interval(metric) if name in _WITH_INTERVAL else _number(metric["mean"])


def _spread(system: SystemResult) -> str:
    """Standard deviations over the seeds, and their number; blank for one."""
    n_seeds = len(system["unscored"])
    if n_seeds == 1:
        return ""
    auc, gauc = (_number(system["metrics"][name]["sd"]) for name in _WITH_INTERVAL)
    return f"{auc}/{gauc} ({n_seeds})"


def difference_rows(
    differences: Iterable[Difference], baseline: str = "best counting baseline"
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of differences from a baseline, which the header calls so."""
    header = ["system", "metric", baseline, "difference [95 %]", "p", "verdict"]
    rows = [
        [
            d["system"],
            METRICS[d["metric"]].title,
            d["baseline"],
            f"{_number(d['difference'], '+.3f')} {_interval(d, '+.3f')}".rstrip(),
            _number(d["p"]),
            d["verdict"],
        ]
        for d in differences
    ]
    return header, rows


def answer_rows(systems: Iterable[SystemResult]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table with a column for each system, which all have answers."""
    names, answers = zip(*((system["name"], system["answers"]) for system in systems), strict=True)
    rows = [[title, *map(cell, answers)] for title, cell in _ANSWER_LINES]
    return ["answers", *names], rows


def _two(one: int | None, other: int | None) -> str:
    return f"{_number(one, ',')} / {_number(other, ',')}"


def data_in_words(data: Data) -> str:
    """The test samples in a sentence."""
    return (
        f"{data['rows']:,} test samples of {data['users']:,} users ({data['users_with_both']:,} "
        f"with both likes and dislikes), {data['like_share']:.1%} likes."
    )


def with_interval(metric: MetricResult) -> str:
    """A figure and its interval, `0.723 [0.643,0.787]`."""
    return f"{_number(metric['mean'])} {_interval(metric)}".rstrip()


def _interval(figure: Mapping[str, Any], form: str = ".3f") -> str:
    if figure["low"] is None:
        return ""
    return f"[{figure['low']:{form}},{figure['high']:{form}}]"


def _number(value: float | None, form: str = ".3f") -> str:
    return "n/a" if value is None else format(value, form)


def _list(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Facts as a Markdown list, mappings in them as lists of their own."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield f"{indent}- {key}:"
            yield from _list(value, indent + "  ")
        else:
            yield f"{indent}- {key}: {value if isinstance(value, str) else json.dumps(value)}"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """A name may hold what would end its cell."""
    return " ".join(text.split()).replace("|", r"\|")
