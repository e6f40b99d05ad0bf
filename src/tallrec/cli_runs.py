"""`tallrec runs`: what was run, what came of it, and removing it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tallrec.console import say, show

runs_app = typer.Typer(help="Run directories.", no_args_is_help=True, rich_markup_mode=None)
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
ByOption = Annotated[
    str | None,
    typer.Option(
        help="What scores: model or gaussian-process.",
        show_default="gaussian-process if the run has one",
    ),
]
_COLUMNS = ("run", "state", "template", "stages", "shots", "seeds", "auc", "gauc", "started")


@runs_app.command("list")
def runs_list(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to look.")] = Path(
        "runs"
    ),
) -> None:
    """Show the runs in a folder and its folders, oldest first."""
    from rich.table import Table
    from rich.text import Text

    from tallrec.run import find_runs
    from tallrec.steps.runs import summary

    table = Table(*_COLUMNS, box=None)
    for run in find_runs(folder):
        facts = summary(run)
        table.add_row(*(Text(str(facts.get(column, ""))) for column in _COLUMNS))
    if table.row_count:
        show(table)
    else:
        say(f"There are no runs in {folder}")


@runs_app.command("show")
def runs_show(run: RunArgument) -> None:
    """Show where a run came from, how to repeat it, and its report."""
    import tomli_w

    from tallrec.evaluate import to_table
    from tallrec.run import open_run
    from tallrec.steps.evaluate import read_report
    from tallrec.steps.runs import details

    opened = open_run(run)
    print(tomli_w.dumps(details(opened)))
    if opened.evaluated:
        show(to_table(read_report(run)))


@runs_app.command("compare")
def runs_compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Evaluated runs.")],
    out: Annotated[Path | None, typer.Option(help="Write report and plot here.")] = None,
) -> None:
    """Put evaluated runs on the same rows beside each other."""
    from tallrec.evaluate import to_table
    from tallrec.steps.evaluate import compare_runs

    show(to_table(compare_runs(runs, out)))


@runs_app.command("rm")
def runs_rm(
    run: RunArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a run directory with all that is in it."""
    from tallrec.run import open_run
    from tallrec.steps.runs import remove_run, summary

    facts = summary(open_run(run))
    if not yes:
        typer.confirm(f"Remove {run} ({facts['recipe']}, {facts['state']})?", abort=True)
    remove_run(run)
    say(f"{run} is removed")
