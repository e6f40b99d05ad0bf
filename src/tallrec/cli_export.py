"""`tallrec export`: a tuned run for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tallrec.cli_runs import RunArgument
from tallrec.console import say


def export(
    run: RunArgument,
    to: Annotated[
        str, typer.Option(help="merged (Hugging Face folder), gguf (one file) or peft (adapter).")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    seed: Annotated[
        int | None, typer.Option(help="Which seed's adapter.", show_default="the first")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="Of a GGUF file's matrices: float32, float16, bfloat16 or q8_0.",
            show_default="the run's dtype",
        ),
    ] = None,
) -> None:
    """Write a tuned run as a folder that other programs load, with a model card."""
    from tallrec.steps.export import export_run

    export_run(run, to, out, seed=seed, kind=kind, say=say)
    say(f"Exported; {out / 'README.md'} says how to use it")
