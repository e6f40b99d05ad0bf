"""What commands say on standard error and show on standard output; of several processes, one."""

from __future__ import annotations

import sys

from tallrec.processes import is_first


def say(line: str) -> None:
    """Prints a line about the work on standard error."""
    if is_first():
        print(line, file=sys.stderr, flush=True)


def show(renderable: object) -> None:
    """Prints a result on standard output, as wide as the terminal or 120 columns."""
    from rich.console import Console

    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(renderable)


def show_markdown(text: str) -> None:
    """Prints a page: laid out on a terminal, as it is into a file or pipe."""
    from rich.markdown import Markdown

    if sys.stdout.isatty():
        show(Markdown(text))
    else:
        print(text)  # Rich would break lines and take [brackets] for markup
