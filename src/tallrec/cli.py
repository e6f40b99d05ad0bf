"""The command line: thin bodies over `tallrec.steps`, which are imported when a command runs."""

from __future__ import annotations

import errno
import gc
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

import typer

from tallrec.cli_assets import assets_app
from tallrec.cli_export import export
from tallrec.cli_feedback import feedback_app
from tallrec.cli_in_context import in_context
from tallrec.cli_options import numbers, resumable
from tallrec.cli_plan import plan
from tallrec.cli_prepare import prepare
from tallrec.cli_recipe import RecipeArgument, SettingsOption, recipe_app
from tallrec.cli_recommend import DataOption, recommend, score
from tallrec.cli_reproduce import reproduce_app
from tallrec.cli_runs import RunArgument, runs_app, runs_compare
from tallrec.cli_serve import serve
from tallrec.console import say, show, show_markdown
from tallrec.processes import rank, started

_SECONDS_FOR_THE_FIRST = 5.0

app = typer.Typer(
    name="tallrec",
    help="Tune a causal language model into a recommender from a handful of samples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.command()(prepare)
app.command()(plan)
app.command("in-context")(in_context)
app.command("compare")(runs_compare)
app.command()(serve)
app.add_typer(reproduce_app, name="reproduce")
app.add_typer(recipe_app, name="recipe")
app.add_typer(runs_app, name="runs")
app.add_typer(assets_app, name="assets")
app.add_typer(feedback_app, name="feedback")

OutOption = Annotated[Path, typer.Option(help="The run directory.")]
TuningDataOption = Annotated[
    Path | None, typer.Option("--data", help="A prepared folder instead of the recipe's data.")
]
PartOption = Annotated[str, typer.Option(help="Which part: train, valid or test.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run directory.")] = Path("runs/demo"),
    k: Annotated[int, typer.Option("-k", min=1, help="How many items to recommend.")] = 10,
) -> None:
    """Tune SmolLM2 on 64 MovieLens samples, measure it beside counting, recommend."""
    from tallrec.recipe_files import load_recipe
    from tallrec.run import free_path
    from tallrec.steps.demo import run_demo

    path = free_path(out)
    if path != out:
        say(f"{out} is not overwritten; this run goes to {path}")
    with resumable():
        run_demo(load_recipe("demo"), path, k=k, say=say, show=show)


@app.command()
def run(
    recipe: RecipeArgument,
    out: OutOption,
    data: TuningDataOption = None,
    settings: SettingsOption = None,
) -> None:
    """Do all that a recipe says, from data to report; the same command continues a cut-off run."""
    from tallrec.evaluate import to_table
    from tallrec.recipe_files import load_recipe
    from tallrec.steps.runs import run_recipe

    loaded = load_recipe(recipe, tuple(settings or ()))
    with resumable():
        result = run_recipe(loaded, out, data=data, say=say)
    show(to_table(result))
    say(f"Report: {out / 'report.md'}")


@app.command()
def tune(
    recipe: RecipeArgument,
    out: OutOption,
    data: TuningDataOption = None,
    shots: Annotated[int | None, typer.Option(help="How many samples to tune on.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0,1,2.")] = None,
    template: Annotated[str | None, typer.Option(help="timeline, paper or paper-clean.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Asset, Hugging Face id, folder or GGUF file.")
    ] = None,
    from_adapter: Annotated[
        str | None, typer.Option(help="An adapter folder to go on from, also one of plain PEFT.")
    ] = None,
    settings: SettingsOption = None,
) -> None:
    """Tune an adapter for each seed of a recipe; the same command continues a cut-off run."""
    from tallrec.recipe_files import load_recipe
    from tallrec.steps.tune import tune_recipe

    given = {
        "shots.count": shots,
        "seeds": f"[{seeds}]" if seeds is not None else None,
        "template": template,
        "backbone.source": backbone,
        "backbone.adapter": from_adapter,
    }
    more = (f"{key}={value}" for key, value in given.items() if value is not None)
    with resumable():
        tune_recipe(load_recipe(recipe, (*(settings or ()), *more)), out, data=data, say=say)
    say(f"Tuned. Measure it with: tallrec evaluate {out}")


@app.command()
def ablate(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPE...", help="Recipes of both stages.")
    ],
    out: Annotated[Path, typer.Option(help="The folder of the runs and the report.")],
    data: TuningDataOption = None,
    shots: Annotated[str, typer.Option(help="How many samples to tune on.")] = "16,64,256",
    seeds: Annotated[str, typer.Option(help="Seeds of each number of shots.")] = "0,1,2",
    settings: SettingsOption = None,
) -> None:
    """Tune with either stage, both and neither, over shots and seeds: which stage helps?"""
    from tallrec.recipe_files import load_recipe
    from tallrec.steps.ablate import ablate as ablate_step

    loaded = [load_recipe(name, tuple(settings or ())) for name in recipes]
    with resumable():
        page = ablate_step(
            loaded,
            out,
            shots=numbers(shots, "--shots"),
            seeds=numbers(seeds, "--seeds"),
            data=data,
            say=say,
        )
    show_markdown(page)
    say(f"Report: {out / 'report.md'}")


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


app.command()(score)
app.command()(recommend)
app.command()(export)


def main() -> None:
    """Entry point: mistakes of a user end in one line and exit code 2, never in a traceback."""
    warnings.showwarning = _warn
    gc.set_threshold(10_000)  # of what torch imports nothing is garbage: half a second of looking
    if rank():  # libraries say the same in every process
        logging.disable(logging.WARNING)
    try:
        _check_processes(sys.argv[1:])
        app()
    except (ValueError, OSError) as error:
        _fail(error)


def _warn(
    message: Warning | str, category: type[Warning], *_where: object, **_more: object
) -> None:
    if issubclass(category, UserWarning):  # others are between libraries
        say(f"Warning: {message}")


def _check_processes(arguments: list[str]) -> None:
    if started() > 1 and arguments[:1] not in ([], ["run"], ["tune"]):
        raise ValueError(
            f"tallrec {arguments[0]} works in one process, but {started()} were started: give it "
            f"without torchrun or accelerate; run and tune take several"
        )


def _fail(error: Exception) -> None:
    if os.environ.get("TALLREC_DEBUG"):
        raise error
    message = str(error)
    if isinstance(error, OSError):
        full = "; free some space and run the same command again"
        message = f"{error.strerror or error}: {error.filename or 'a file'}"
        message += full if error.errno == errno.ENOSPC else ""
    where = ""
    if rank():  # the first process says what all have found, and then the launcher ends the others
        time.sleep(_SECONDS_FOR_THE_FIRST)
        where = f"process {rank()} of {started()}: "
    print(f"Error: {where}{message}", file=sys.stderr, flush=True)
    # Threads of a process group may wait for processes that never come: not for their end.
    os._exit(2) if started() > 1 else sys.exit(2)
