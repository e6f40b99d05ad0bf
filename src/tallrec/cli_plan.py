"""`tallrec plan`: whether a recipe fits into memory, before anything is loaded."""

from __future__ import annotations

from typing import Annotated

import typer

from tallrec.cli_recipe import RecipeArgument, SettingsOption
from tallrec.console import say, show


def plan(
    recipe: RecipeArgument,
    memory: Annotated[
        str | None,
        typer.Option(help="Memory of one device, such as 24GB.", show_default="this machine's"),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="How many devices tune together.")] = 1,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of the longest row.", show_default="the recipe's limit"),
    ] = None,
    settings: SettingsOption = None,
) -> None:
    """Estimate the memory a recipe needs, by its backbone's config; exit code 1 if it is too much.

    No weights are read.
    """
    from dataclasses import fields

    from rich.table import Table

    from tallrec.llm.estimate import Memory
    from tallrec.recipe_files import load_recipe
    from tallrec.steps.plan import in_bytes, plan_recipe

    result = plan_recipe(
        load_recipe(recipe, tuple(settings or ())),
        memory=in_bytes(memory) if memory else None,
        devices=devices,
        tokens=tokens,
        say=say,
    )
    names = [field.name for field in fields(Memory)]
    table = Table("GB on a device", *names, "together", box=None)
    for part, need in result.parts.items():
        sizes = [*(getattr(need, name) for name in names), need.total]
        table.add_row(part, *(f"{size / 1e9:.2f}" for size in sizes))
    show(table)
    verdict = "fits into" if result.fits else "does not fit into"
    say(f"{recipe} {verdict} {result.room / 1e9:.1f} GB: it needs about {result.need / 1e9:.1f} GB")
    for change, size in result.advice:
        say(f"  {size / 1e9:.1f} GB with {change}")
    if not result.fits:
        if not any(size <= result.room for _, size in result.advice):
            say("  None of these is enough: take a smaller backbone or larger devices")
        raise typer.Exit(1)
