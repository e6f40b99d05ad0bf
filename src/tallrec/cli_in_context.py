"""`tallrec in-context`: a model that is not tuned, asked with and without examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tallrec.cli_options import (
    BaseUrlOption,
    CompletionsOption,
    ConcurrencyOption,
    KeyVariableOption,
    numbers,
    resumable,
)
from tallrec.console import say, show

if TYPE_CHECKING:
    from tallrec.baselines.endpoint import Endpoint


RowsOption = Annotated[
    int | None, typer.Option(help="Ask about so many rows, drawn at random.", show_default="all")
]


def in_context(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A prepared folder.")],
    out: Annotated[Path, typer.Option(help="The folder of the answers and the report.")],
    model: Annotated[str | None, typer.Option(help="A model of the endpoint.")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Instead of an endpoint: asset, Hugging Face id, folder or GGUF file."),
    ] = None,
    base_url: BaseUrlOption = None,
    key_variable: KeyVariableOption = None,
    template: Annotated[str, typer.Option(help="paper, paper-clean or timeline.")] = "paper",
    shots: Annotated[str, typer.Option(help="Numbers of worked examples.")] = "0,4",
    seeds: Annotated[str, typer.Option(help="Seeds of the draws of examples.")] = "0",
    part: Annotated[str, typer.Option(help="Which part: train, valid or test.")] = "test",
    rows: RowsOption = None,
    completions: CompletionsOption = False,
    concurrency: ConcurrencyOption = 4,
    requests_per_minute: Annotated[
        float | None, typer.Option(help="Most requests in a minute.", show_default="no limit")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.")] = 60.0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 16,
    price_in: Annotated[
        float | None, typer.Option(help="Price of a million tokens read.", show_default="unknown")
    ] = None,
    price_out: Annotated[
        float | None,
        typer.Option(help="Price of a million tokens written.", show_default="unknown"),
    ] = None,
) -> None:
    """Ask a model that is not tuned, with and without examples, and measure it beside counting."""
    if (model is None) == (backbone is None):
        raise ValueError("give either --model, of an endpoint, or --backbone, to be loaded here")
    from tallrec.baselines.endpoint import OPENAI, Endpoint
    from tallrec.evaluate import to_table
    from tallrec.steps.in_context import in_context as in_context_step

    asked: Endpoint | str = backbone or Endpoint(
        model=model or "",
        base_url=base_url or OPENAI,
        api="completions" if completions else "chat",
        key_variable=key_variable,
        concurrency=concurrency,
        requests_per_minute=requests_per_minute,
        timeout=timeout,
        max_tokens=max_tokens,
        price_in=price_in,
        price_out=price_out,
    )
    with resumable("answer"):
        result = in_context_step(
            data,
            out,
            asked,
            template=template,
            shots=numbers(shots, "--shots"),
            seeds=numbers(seeds, "--seeds"),
            part=part,
            rows=rows,
            say=say,
        )
    show(to_table(result))
    say(f"Report: {out / 'report.md'}")
