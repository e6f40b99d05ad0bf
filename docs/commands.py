"""Writes docs/commands.md from the command line's own help; `--check` fails if it is stale."""

from __future__ import annotations

import sys
from pathlib import Path

from typer.models import CommandInfo, TyperInfo
from typer.testing import CliRunner

from tallrec.cli import app

PAGE = Path(__file__).with_name("commands.md")
HEADER = "# Commands\n\nMade from the commands' own help by `python docs/commands.py`.\n"


def name(command: CommandInfo) -> str:
    """What a command is called."""
    return command.name or getattr(command.callback, "__name__", "")


def within(group: TyperInfo) -> list[tuple[str, ...]]:
    """A group itself and its commands."""
    commands = group.typer_instance.registered_commands if group.typer_instance else []
    return [(), *((name(command),) for command in commands)]


COMMANDS = [
    (),
    *((name(command),) for command in app.registered_commands),
    *((group.name or "", *rest) for group in app.registered_groups for rest in within(group)),
]


def section(command: tuple[str, ...]) -> str:
    """A command's help as a section of the page."""
    result = CliRunner().invoke(
        app, [*command, "--help"], prog_name="tallrec", env={"COLUMNS": "100"}, terminal_width=100
    )
    if result.exit_code:
        sys.exit(f"{command} --help failed:\n{result.output}")
    return f"\n## {' '.join(('tallrec', *command))}\n\n```text\n{result.output.strip()}\n```\n"


def main() -> None:
    """Writes or checks the page."""
    page = HEADER + "".join(section(command) for command in COMMANDS)
    if "--check" not in sys.argv:
        PAGE.write_text(page, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page:
        sys.exit("docs/commands.md is stale: run 'python docs/commands.py'")


main()
