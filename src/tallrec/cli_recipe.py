"""`tallrec recipe`: what recipes there are and what they say."""

from __future__ import annotations

from typing import Annotated

import typer

from tallrec.console import say, show

recipe_app = typer.Typer(
    help="Recipes: what a run computes, in TOML.", no_args_is_help=True, rich_markup_mode=None
)
RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe's name or TOML file.")
]
SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", help="Such as stages.0.learning_rate=3e-4.")
]


@recipe_app.command("list")
def recipe_list() -> None:
    """Show the recipes that come with tallrec."""
    from rich.table import Table

    from tallrec.recipe_files import about, shipped_recipes

    table = Table("name", "what", box=None)
    for name, path in shipped_recipes().items():
        table.add_row(name, about(path))
    show(table)


@recipe_app.command("show")
def recipe_show(recipe: RecipeArgument, settings: SettingsOption = None) -> None:
    """Print a recipe as TOML, with every default and --set written out."""
    from tallrec.recipe_files import load_recipe

    print(load_recipe(recipe, tuple(settings or ())).to_toml(), end="")


@recipe_app.command("check")
def recipe_check(recipe: RecipeArgument, settings: SettingsOption = None) -> None:
    """Check a recipe and that the files and packages it names are there; computes nothing."""
    from tallrec.recipe_files import load_recipe
    from tallrec.steps.check import check_data, check_sources

    loaded = load_recipe(recipe, tuple(settings or ()))
    check_sources(loaded)
    check_data(loaded)
    say(f"{recipe} is right. Run it with: tallrec run {recipe} --out runs/{loaded.name}")
