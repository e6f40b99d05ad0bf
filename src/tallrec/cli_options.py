"""What several commands share: lists of numbers, and how Ctrl-C ends."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from tallrec.console import say
from tallrec.processes import started


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
