"""`tallrec reproduce`: the paper's tables, with any backbone, beside the published figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tallrec.cli_in_context import RowsOption
from tallrec.cli_options import BaseUrlOption, numbers, resumable
from tallrec.cli_recipe import SettingsOption
from tallrec.console import say, show_markdown

if TYPE_CHECKING:
    from tallrec.steps.reproduction import Reproduction

reproduce_app = typer.Typer(
    help="The paper's tables, measured here beside the published figures.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
OutOption = Annotated[Path, typer.Option(help="The folder of runs and reports, for all tables.")]
DataOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        help="Book-Crossing as published (folder or zip), or a prepared folder; one a domain. "
        "Without one of movies, the paper's are prepared.",
    ),
]
RecipesOption = Annotated[
    str, typer.Option(help="Recipes of both stages, one a template, by name or file.")
]
InstructionsOption = Annotated[
    str | None,
    typer.Option(help="Records of the first stage; without, only the stage on shots is run."),
]
BackboneOption = Annotated[
    str | None, typer.Option(help="Asset, Hugging Face id, folder or GGUF file.")
]
ShotsOption = Annotated[str, typer.Option(help="How many samples to tune on.")]
SeedsOption = Annotated[str, typer.Option(help="Seeds of each number of shots.")]

_OUT = Path("runs/reproduce")
_RECIPES = "two-stages,two-stages-paper"


@reproduce_app.command("table1")
def reproduce_table1(
    out: OutOption = _OUT,
    data: DataOption = None,
    instructions: InstructionsOption = None,
    backbone: BackboneOption = None,
    shots: ShotsOption = "16,64,256",
    seeds: SeedsOption = "0,1,2",
    recipes: RecipesOption = _RECIPES,
    settings: SettingsOption = None,
) -> None:
    """Recommenders of the paper and the tuned model, by shots, in each domain."""
    from tallrec.steps.paper_tables import table_1

    with resumable():
        common = _common(out, data, instructions, backbone, shots, seeds, recipes, settings)
        show_markdown(table_1(common))
    say(f"Report: {out / 'table1' / 'report.md'}")


@reproduce_app.command("ablation")
def reproduce_ablation(
    instructions: Annotated[str, typer.Option(help="Records of the first stage.")],
    out: OutOption = _OUT,
    data: DataOption = None,
    backbone: BackboneOption = None,
    shots: ShotsOption = "16,64,256",
    seeds: SeedsOption = "0,1,2",
    recipes: RecipesOption = _RECIPES,
    settings: SettingsOption = None,
) -> None:
    """Neither stage of tuning, either and both, by shots, in each domain."""
    from tallrec.steps.paper_tables import ablation

    with resumable():
        common = _common(out, data, instructions, backbone, shots, seeds, recipes, settings)
        show_markdown(ablation(common))
    say(f"Report: {out / 'ablation' / 'report.md'}")


@reproduce_app.command("icl")
def reproduce_icl(
    out: OutOption = _OUT,
    data: DataOption = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Asset, Hugging Face id, folder or GGUF file; unless --model names another.",
            show_default="smollm2-135m",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="A model of an endpoint instead.")] = None,
    base_url: BaseUrlOption = None,
    shots: Annotated[str, typer.Option(help="Numbers of worked examples.")] = "0,4",
    seeds: Annotated[str, typer.Option(help="Seeds of the draws of examples.")] = "0",
    templates: Annotated[str, typer.Option(help="Templates of the questions.")] = "paper,timeline",
    rows: RowsOption = None,
) -> None:
    """A model that is not tuned, asked with and without examples, in each domain."""
    if model is not None and backbone is not None:
        raise ValueError("give either --model, of an endpoint, or --backbone, to be loaded here")
    from tallrec.baselines.endpoint import OPENAI, Endpoint
    from tallrec.recipe_files import load_recipe
    from tallrec.steps.icl_table import in_context_table
    from tallrec.steps.reproduction import domain_folders

    asked = Endpoint(model, base_url or OPENAI) if model else backbone or "smollm2-135m"
    with resumable("answer"):
        movies = load_recipe(_RECIPES.split(",", maxsplit=1)[0])
        page = in_context_table(
            domain_folders(data or [], out, movies, say=say),
            out,
            asked,
            templates=templates.split(","),
            shots=numbers(shots, "--shots"),
            seeds=numbers(seeds, "--seeds"),
            rows=rows,
            say=say,
        )
        show_markdown(page)
    say(f"Report: {out / 'icl' / 'report.md'}")


@reproduce_app.command("cross-domain")
def reproduce_cross_domain(
    out: OutOption = _OUT,
    data: DataOption = None,
    instructions: InstructionsOption = None,
    backbone: BackboneOption = None,
    shots: ShotsOption = "64",
    seeds: SeedsOption = "0,1,2",
    recipes: RecipesOption = _RECIPES,
    settings: SettingsOption = None,
) -> None:
    """Tuned on each domain and on all together, measured on every domain."""
    from tallrec.steps.cross_domain import cross_domain

    with resumable():
        common = _common(out, data, instructions, backbone, shots, seeds, recipes, settings)
        show_markdown(cross_domain(common))
    say(f"Report: {out / 'cross-domain' / 'report.md'}")


def _common(
    out: Path,
    data: list[Path] | None,
    instructions: str | None,
    backbone: str | None,
    shots: str,
    seeds: str,
    recipes: str,
    settings: list[str] | None,
) -> Reproduction:
    """What all tables have in common, from the options."""
    from tallrec.recipe_files import load_recipe
    from tallrec.steps.reproduction import Reproduction, domain_folders

    given = {"stages.0.source": instructions, "backbone.source": backbone}
    more = tuple(f"{key}={value}" for key, value in given.items() if value is not None)
    loaded = [load_recipe(name, (*(settings or ()), *more)) for name in recipes.split(",")]
    return Reproduction(
        out,
        loaded,
        domain_folders(data or [], out, loaded[0], say=say),
        shots=numbers(shots, "--shots"),
        seeds=numbers(seeds, "--seeds"),
        instructed=instructions is not None,
        say=say,
    )
