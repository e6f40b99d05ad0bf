"""What several commands share: lists of numbers, and how Ctrl-C ends."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from tallrec.console import say
from tallrec.processes import started

if TYPE_CHECKING:
    from tallrec.scale.cluster import ClusterOptions
    from tallrec.scale.jobs import Tally

EngineOption = Annotated[
    str | None, typer.Option(help="ray: on many machines; see docs/scale.md.", metavar="ray")
]
AddressOption = Annotated[
    str | None, typer.Option(help="Ray: a running cluster.", show_default="this machine")
]
WorkersOption = Annotated[
    int | None, typer.Option(help="Ray: how many.", show_default="one a GPU, or one a CPU")
]
BucketsOption = Annotated[int, typer.Option(min=1, help="Ray: parts that users are hashed into.")]
BaseUrlOption = Annotated[
    str | None, typer.Option(help="Such as http://127.0.0.1:8080/v1.", show_default="OpenAI's")
]
KeyVariableOption = Annotated[
    str | None,
    typer.Option(
        help="Environment variable with the key.",
        show_default="OPENAI_API_KEY for OpenAI, no key for others",
    ),
]
CompletionsOption = Annotated[
    bool, typer.Option("--completions", help="Complete the text; for base models.")
]
ConcurrencyOption = Annotated[int, typer.Option(help="Most questions on their way at once.")]
BUCKETS = 64
INCOMPLETE = 3
"""The exit code of a job that is finished but for rows that were set aside."""


def cluster_of(engine: str, address: str | None, workers: int | None) -> ClusterOptions:
    """Where a job runs.

    Raises:
        ValueError: If there is no such engine.
    """
    if engine != "ray":
        raise ValueError(f"the engine for many machines is ray; got {engine!r}")
    from tallrec.scale.cluster import ClusterOptions

    return ClusterOptions(address, workers)


def check_no_cluster(address: str | None, workers: int | None) -> None:
    """Refuses options that only another engine has.

    Raises:
        ValueError: If one is given.
    """
    if address is not None or workers is not None:
        raise ValueError("--address and --workers are for --engine ray")


def end_with(tally: Tally, out: str, what: str) -> None:
    """Says what came of a job; ends with `INCOMPLETE` if rows were set aside."""
    say(f"{tally.rows:,} {what} written to {out}")
    if tally.set_aside:
        say(f"{tally.set_aside:,} rows were set aside, with the reason, in {out}/set-aside")
        raise typer.Exit(INCOMPLETE)


def numbers(text: str, option: str) -> tuple[int, ...]:
    """The numbers of an option such as 16,64.

    Raises:
        ValueError: If it holds something else.
    """
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{option} takes numbers such as 16,64; got {text!r}") from None


@contextmanager
def resumable(kept: str = "checkpoint") -> Iterator[None]:
    """Ends on Ctrl-C with the command that goes on from the last of what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["tallrec", *sys.argv[1:]])
        how = "This, with the launcher as before," if started() > 1 else "This"
        say(f"\nStopped. {how} goes on from the last {kept}:\n  {command}")
        raise typer.Exit(130) from None
