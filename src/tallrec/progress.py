"""Long work shows where it is: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tallrec.processes import is_first

OnProgress = Callable[[int, int, str], None]
_SECONDS_BETWEEN_LINES = 10.0


def silent(_done: int, _total: int, _note: str = "") -> None:
    """The default of every `on_progress` argument: (done, total, note) go nowhere."""


def in_words(seconds: float) -> str:
    """A duration as a person would say it: `40 s`, `12 min`, `2 h 5 min`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def shown(description: str, console: Console | None = None) -> Iterator[OnProgress]:
    """Yields an `on_progress` function that draws on standard error, in one process of several.

    Args:
        description: What is being done, in two or three words.
        console: Where to draw; standard error unless given.
    """
    if not is_first():
        yield silent
        return
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _line_printer(description, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update


def _line_printer(description: str, console: Console) -> OnProgress:
    started = time.monotonic()
    last = started

    def update(done: int, total: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            line = f"{description}: {done}/{total} after {now - started:.0f} s {note}"
            console.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)

    return update
