"""What several commands share: how an option is read, and how a stopped command is gone on with."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from tallrec.console import say


def numbers(text: str, option: str) -> tuple[int, ...]:
    """The numbers of an option such as `16,64`.

    Raises:
        ValueError: If they are none.
    """
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{option} takes numbers such as 16,64; got {text!r}") from None


@contextmanager
def resumable() -> Iterator[None]:
    """Ends a command that was stopped with Ctrl-C with the command that goes on."""
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["tallrec", *sys.argv[1:]])
        say(f"\nStopped. This goes on from the last checkpoint:\n  {command}")
        raise typer.Exit(130) from None
