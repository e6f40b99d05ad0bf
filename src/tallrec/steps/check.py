"""What can be known to go wrong before anything is written or loaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from tallrec.data import DATASETS
from tallrec.recipe import Recipe
from tallrec.steps.data import check_source, instructions_source

NEED_IMPLICIT = ("item-knn", "matrix-factorization")


def check_sources(recipe: Recipe) -> None:
    """Finds a mistyped path or a missing package of a recipe.

    Raises:
        ValueError: If there is one; it is named with its key.
    """
    for name in recipe.loggers:
        _require(name, f"loggers: {name}")
    for reference in recipe.evaluation.references:
        if reference in NEED_IMPLICIT:
            _require("implicit", f"evaluation.references: {reference}")
    if recipe.backbone.quantize != "none":
        _require("bitsandbytes", f"backbone.quantize: {recipe.backbone.quantize}")
    start = recipe.backbone.adapter
    if start is not None and not Path(start).is_dir():
        raise ValueError(f"backbone.adapter: there is no adapter folder {start} to go on from")
    for number, stage in enumerate(recipe.instruction_stages):
        try:
            instructions_source(stage.source)
        except ValueError as error:
            raise ValueError(f"stages.{number}.source: {error}") from None


def check_data(recipe: Recipe) -> None:
    """Finds a mistyped data set of a recipe that is run without another prepared folder.

    Raises:
        ValueError: If there is neither a data set nor a folder of that name, or its files are not
            to be had.
    """
    name = recipe.data.dataset
    if name not in DATASETS and not Path(name).is_dir():
        raise ValueError(
            f"data.dataset: there is no data set or prepared folder {name!r}: prepare it with "
            f"'tallrec prepare', or give one of {', '.join(DATASETS)}"
        )
    if name in DATASETS:
        check_source(name, recipe.data.source)


def _require(package: str, why: str) -> None:
    if find_spec(package) is None:
        raise ValueError(f"{why} needs a package that is not installed: pip install {package}")
