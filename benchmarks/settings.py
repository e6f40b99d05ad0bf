"""Compares settings of a recipe on users that are in no part of the paper's movie split.

The defaults of the recipes were chosen with this script, so that no test row was looked at:

    python benchmarks/settings.py demo --seeds 0,1 --set stages.0.learning_rate=1e-3

tunes on the shots of each seed as `tallrec tune` does and prints AUC, GAUC and log-loss on 960 rows
of 80 other users of MovieLens-100K, beside the counting baselines on the same shots.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from tallrec.assets import fetch
from tallrec.baselines import COUNTING_BASELINES
from tallrec.data.movielens import read_movielens_100k
from tallrec.data.prepared import Prepared, PreparedInfo, write_prepared
from tallrec.data.samples import build_samples
from tallrec.data.splits import split_paper
from tallrec.evaluate import METRICS
from tallrec.llm.adapter import load_adapter
from tallrec.recipe_files import load_recipe
from tallrec.steps.stages import scorer_of
from tallrec.steps.tune import load, shots_of, tune_recipe
from tallrec.types import FloatArray, Samples

USERS, ROWS_EACH = 80, 12
INFO = PreparedInfo("movielens-100k", "movie", "paper", 10, 10, 3.0, 0)


def other_users(samples: Samples, in_split: Samples, seed: int = 7) -> Samples:
    """Rows of users with at least 60 samples that occur nowhere in the split."""
    rng = np.random.default_rng(seed)
    users, counts = np.unique(samples.users, return_counts=True)
    free = np.setdiff1d(users[counts >= 60], in_split.users)
    chosen = rng.permutation(free)[:USERS]
    rows = [
        np.sort(rng.choice(np.flatnonzero(samples.users == user), ROWS_EACH, replace=False))
        for user in chosen
    ]
    return samples[np.concatenate(rows)]


def show(name: str, scores: FloatArray, samples: Samples) -> None:
    """Prints one line of figures."""
    figures = (
        f"{metric} {METRICS[metric](samples.labels, scores, samples.users):.3f}"
        for metric in ("auc", "gauc", "log_loss")
    )
    print(f"{name:32}", *figures, flush=True)


def main() -> None:
    """Tunes each seed and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="demo")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, (*options.settings, f"seeds=[{options.seeds}]"))
    samples = build_samples(read_movielens_100k(fetch("movielens-100k")))
    prepared = Prepared(INFO, split_paper(samples), {})
    rows = other_users(samples, samples[len(samples) - 10_000 :])
    backbone = load(recipe)
    show("not tuned", scorer_of(recipe, backbone, backbone.model, "movie")(rows), rows)
    with tempfile.TemporaryDirectory() as folder:
        write_prepared(Path(folder) / "data", prepared.splits, INFO)
        run = tune_recipe(
            recipe, Path(folder) / "run", data=Path(folder) / "data", backbone=backbone
        )
        for seed in recipe.seeds:
            shots, _ = shots_of(recipe, prepared, seed)
            for name, fit in COUNTING_BASELINES.items():
                show(f"{name}, seed {seed}", fit(shots)(rows), rows)
            model = load_adapter(backbone, run.adapter(seed))
            show(f"tuned, seed {seed}", scorer_of(recipe, backbone, model, "movie")(rows), rows)
            model.unload()


if __name__ == "__main__":
    main()
