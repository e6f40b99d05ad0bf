"""A short run of both stages on the tiny model, in a process that can be killed."""

from pathlib import Path

from tallrec.recipe_files import load_recipe
from tallrec.steps.tune import tune_recipe


def tune_both(folder: Path, model: Path, name: str) -> None:
    """Tunes or continues the run `name` on `folder / "data"` and `folder / "general.json"`."""
    source = folder / "general.json"
    instructions = (
        f'{{data="instructions", source="{source}", epochs=2, batch_size=4, micro_batch=2}}'
    )
    shots = '{data="shots", epochs=3, batch_size=4, micro_batch=4}'
    recipe = load_recipe(
        "demo",
        (
            f"backbone.source={model}",
            "backbone.dtype=float32",
            "shots.count=12",
            "seeds=[0, 1]",
            f"stages=[{instructions}, {shots}]",
        ),
    )
    tune_recipe(recipe, folder / name, data=folder / "data", say=lambda _line: None)
