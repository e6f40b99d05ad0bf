"""The command line: thin bodies over `tallrec.steps`, which are imported when a command runs."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tallrec.cli_assets import assets_app
from tallrec.console import say, show

if TYPE_CHECKING:
    from tallrec.recipe import Recipe

app = typer.Typer(
    name="tallrec",
    help="Tune a causal language model into a recommender from a handful of samples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(assets_app, name="assets")

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="A prepared folder instead of the run's own.")
]
PartOption = Annotated[str, typer.Option(help="Which part: train, valid or test.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run directory.")] = Path("runs/demo"),
    k: Annotated[int, typer.Option("-k", min=1, help="How many items to recommend.")] = 10,
) -> None:
    """Tune SmolLM2 on 64 MovieLens samples, measure it beside counting, recommend."""
    from tallrec.recipe import load_recipe
    from tallrec.run import free_path
    from tallrec.steps.demo import run_demo

    path = free_path(out)
    if path != out:
        say(f"{out} is finished and is not overwritten; this run goes to {path}")
    with _resumable():
        run_demo(load_recipe("demo"), path, k=k, say=say, show=show)


@app.command()
def prepare(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="movielens-100k, movielens-1m or a table file.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; must not exist.")],
    split: Annotated[str, typer.Option(help="users, time or paper.")] = "users",
    source: Annotated[
        Path | None, typer.Option(help="Folder or zip of a named data set's original files.")
    ] = None,
    history: Annotated[int, typer.Option(help="Longest history of a sample, in events.")] = 10,
    min_history: Annotated[
        int | None, typer.Option(help="Shortest history of a sample.", show_default="--history")
    ] = None,
    like_above: Annotated[float, typer.Option(help="A rating above this is a like.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Seed of the split 'users'.")] = 0,
    paper_json: Annotated[
        bool, typer.Option("--paper-json", help="Write the paper's JSON files as well.")
    ] = False,
    user: Annotated[str | None, typer.Option(help="Table: column of user ids.")] = None,
    item: Annotated[str | None, typer.Option(help="Table: column of item ids.")] = None,
    rating: Annotated[str | None, typer.Option(help="Table: column of ratings.")] = None,
    timestamp: Annotated[str | None, typer.Option(help="Table: column of timestamps.")] = None,
    title: Annotated[str | None, typer.Option(help="Table: column of item titles.")] = None,
    creator: Annotated[str | None, typer.Option(help="Table: column of creators.")] = None,
    items: Annotated[
        Path | None, typer.Option(help="Table: a second file with the titles.")
    ] = None,
    items_id: Annotated[str | None, typer.Option(help="Table: item id column of --items.")] = None,
    separator: Annotated[
        str | None, typer.Option(help="Table: such as ';', '::' or '\\t'.")
    ] = None,
    header: Annotated[bool, typer.Option(help="Table: whether row 1 names the columns.")] = True,
    encoding: Annotated[str, typer.Option(help="Table: such as latin-1.")] = "utf-8",
    quoting: Annotated[bool, typer.Option(help='Table: whether " encloses fields.')] = True,
    domain: Annotated[str, typer.Option(help="Table: the noun for an item.")] = "item",
) -> None:
    """Turn a data set into a prepared folder: samples, splits and an audit."""
    from tallrec.data import DATASETS
    from tallrec.data.audit import audit_markdown
    from tallrec.steps.data import load_dataset
    from tallrec.steps.data import prepare as prepare_step

    names = {
        "user": user,
        "item": item,
        "rating": rating,
        "timestamp": timestamp,
        "title": title,
        "creator": creator,
    }
    columns = {role: name for role, name in names.items() if name is not None}
    table = (
        {}
        if dataset in DATASETS
        else {
            "columns": columns,
            "items": items,
            "items_id": items_id,
            "separator": separator,
            "header": header,
            "encoding": encoding,
            "quoting": quoting,
            "domain": domain,
        }
    )
    audit = prepare_step(
        load_dataset(dataset, source=source, say=say, **table),
        out,
        split=split,
        history=history,
        min_history=min_history,
        like_above=like_above,
        seed=seed,
        paper_json=paper_json,
    )
    _show_markdown(audit_markdown(audit))
    say(f"Written to {out}")


@app.command()
def tune(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name or TOML file.")],
    out: Annotated[Path, typer.Option(help="The run directory.")],
    data: Annotated[
        Path | None, typer.Option(help="A prepared folder instead of the recipe's data.")
    ] = None,
    shots: Annotated[int | None, typer.Option(help="How many samples to tune on.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0,1,2.")] = None,
    template: Annotated[str | None, typer.Option(help="timeline, paper or paper-clean.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Asset, Hugging Face id, folder or GGUF file.")
    ] = None,
    from_adapter: Annotated[
        str | None, typer.Option(help="An adapter folder to go on from, also one of plain PEFT.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Such as stages.0.learning_rate=3e-4.")
    ] = None,
) -> None:
    """Tune an adapter for each seed of a recipe; the same command continues a cut-off run."""
    from tallrec.steps.tune import tune_recipe

    loaded = _recipe(
        recipe,
        settings or [],
        {
            "shots.count": shots,
            "seeds": f"[{seeds}]" if seeds is not None else None,
            "template": template,
            "backbone.source": backbone,
            "backbone.adapter": from_adapter,
        },
    )
    with _resumable():
        run = tune_recipe(loaded, out, data=data, say=say)
    say(f"Tuned. Measure it with: tallrec evaluate {run.path}")


@app.command()
def evaluate(
    run: RunArgument,
    data: DataOption = None,
    part: PartOption = "test",
    out: Annotated[
        Path | None, typer.Option(help="Where to write the report.", show_default="RUN")
    ] = None,
) -> None:
    """Measure a run on a part beside the counting baselines, and write its report."""
    from tallrec.evaluate import to_table
    from tallrec.steps.evaluate import evaluate_run

    result = evaluate_run(run, data=data, part=part, out=out, say=say)
    show(to_table(result))
    say(f"Report: {(out or run) / 'report.md'}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Evaluated runs.")],
    out: Annotated[Path | None, typer.Option(help="Write report and plot here.")] = None,
) -> None:
    """Put evaluated runs on the same rows beside each other."""
    from tallrec.evaluate import to_table
    from tallrec.steps.evaluate import compare_runs

    show(to_table(compare_runs(runs, out)))


@app.command()
def score(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    data: DataOption = None,
    part: PartOption = "test",
) -> None:
    """Write the log-odds of a like for every sample of a part."""
    from tallrec.steps.evaluate import score_run

    table = score_run(run, out, data=data, part=part, say=say)
    say(f"{table.height:,} scores written to {out}")


@app.command()
def recommend(
    run: RunArgument,
    user: Annotated[str, typer.Option(help="A user id of the data set.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    data: DataOption = None,
) -> None:
    """Rank the items that a user has not met yet."""
    from tallrec.recommend import recommendations_table
    from tallrec.steps.evaluate import recommend_run

    show(recommendations_table(recommend_run(run, user, k=k, data=data, say=say), user))


def main() -> None:
    """Entry point: mistakes of a user end in one line and exit code 2, never in a traceback."""
    warnings.showwarning = _warn
    try:
        app()
    except (ValueError, OSError) as error:
        _fail(error)


def _warn(
    message: Warning | str, category: type[Warning], *_where: object, **_more: object
) -> None:
    if issubclass(category, UserWarning):  # others are between libraries
        say(f"Warning: {message}")


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say("\nStopped. The same command goes on from the last checkpoint.")
        raise typer.Exit(130) from None


def _fail(error: Exception) -> None:
    if os.environ.get("TALLREC_DEBUG"):
        raise error
    message = str(error)
    if isinstance(error, OSError):
        full = "; free some space and run the same command again"
        message = f"{error.strerror or error}: {error.filename or 'a file'}"
        message += full if error.errno == errno.ENOSPC else ""
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(2)


def _recipe(source: str, settings: list[str], options: dict[str, object]) -> Recipe:
    from tallrec.recipe import load_recipe

    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    return load_recipe(source, (*settings, *given))


def _show_markdown(text: str) -> None:
    from rich.markdown import Markdown

    show(Markdown(text) if sys.stdout.isatty() else text)
