"""`tallrec serve`: a run as a service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tallrec.cli_runs import ByOption, RunArgument
from tallrec.console import say


def serve(
    run: RunArgument,
    host: Annotated[str, typer.Option(help="Address; other than loopback needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    feedback: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="TALLREC_FEEDBACK",
            help="Where feedback is kept: sqlite:///FILE or postgresql://...",
            show_default="RUN.feedback.db beside RUN",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token that clients must send.",
            show_default="TALLREC_TOKEN, or no token",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(help="Origin whose pages may ask, such as https://shop.example; repeatable."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Another name of this server, where there is no token; repeatable."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed.", show_default="the first")] = None,
    by: ByOption = None,
    max_items: Annotated[
        int, typer.Option(min=1, help="Candidates, and events of a history, of a request.")
    ] = 500,
    max_title: Annotated[int, typer.Option(min=1, help="Characters of a title.")] = 300,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a body.")] = 65_536,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Time of a request.")] = 30.0,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 64,
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of requests that are scored together.")
    ] = 4_096,
) -> None:
    """Serve a run: an HTTP API, a page at /, and a store of its users' feedback."""
    from tallrec.serve import check_installed

    check_installed()
    from tallrec.serve.limits import Limits
    from tallrec.serve.server import serve_run
    from tallrec.serve.service import Settings

    limits = Limits(max_items, max_title, max_body, max_seconds, queue, batch_tokens)
    names = (host, "127.0.0.1", "localhost", *(allow_host or ()))
    settings = Settings(limits, _token(token_file), names, tuple(cors or ()), by)
    serve_run(run, host=host, port=port, feedback=feedback, settings=settings, seed=seed, say=say)


def _token(file: Path | None) -> str | None:
    """The token of a file or of the environment; never of the command line, which others see."""
    if file is not None:
        return file.read_text(encoding="utf-8").strip()
    return os.environ.get("TALLREC_TOKEN") or None
