"""What stands beside the model: recommenders of the paper, references on all data, counting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from torch import Tensor

from tallrec.baselines import COUNTING_BASELINES
from tallrec.baselines.fitting import FitOptions
from tallrec.baselines.references import REFERENCES
from tallrec.baselines.sequential import fit_sequential
from tallrec.baselines.titles import encode_titles
from tallrec.data.prepared import Prepared
from tallrec.data.samples import full_data
from tallrec.evaluate import COUNTING, System
from tallrec.recipe import Recipe
from tallrec.steps.data import Say, backbone_source
from tallrec.steps.score import kept
from tallrec.steps.tune import labelled_of, shots_of
from tallrec.types import FloatArray, Samples

FULL_DATA = "the training part, and all users who occur in no part"


def score_sequential(
    recipe: Recipe, own: Prepared, samples: Samples, out: Path, *, say: Say = print
) -> list[System]:
    """The sequential recommenders that a recipe names, fitted on the shots of each of its seeds.

    Args:
        recipe: Its `evaluation` says which, and what they are fitted on.
        own: Where the shots come from.
        samples: What to score.
        out: Scores are kept in `out / "seed-N"`, as the model's are.
        say: Shows a line to the user.
    """
    length = own.info.history + recipe.evaluation.block - 1

    @cache
    def encode(titles: tuple[str, ...]) -> Tensor:
        return encode_titles(backbone_source(recipe.evaluation.encoder, say=say), titles)

    def fit_and_score(name: str, seed: int) -> FloatArray:
        say(f"Fitting {name} on the {recipe.evaluation.baselines_on}, seed {seed}")
        shots, valid = rows_for_baselines(recipe, own, seed)
        options = FitOptions(length=length, seed=seed)
        return fit_sequential(name, shots, valid=valid, options=options, encode=encode)(samples)

    systems = []
    for name in recipe.evaluation.baselines:
        files = {seed: out / f"seed-{seed}" / f"{name}.parquet" for seed in recipe.seeds}
        scores = [
            kept(file, samples, partial(fit_and_score, name, seed)) for seed, file in files.items()
        ]
        systems.append(System(name, "sequential", np.array(scores)))
    return systems


def rows_for_baselines(recipe: Recipe, own: Prepared, seed: int) -> tuple[Samples, Samples | None]:
    """Rows that the sequential recommenders are fitted on and rows they stop on, if any."""
    shots, valid = shots_of(recipe, own, seed)
    if recipe.evaluation.baselines_on == "shots":
        return shots, valid
    rows = own.splits.train.rows
    if valid is not None:  # shots held out of the training part must stay out of it
        rows = rows.join(valid.rows, on=["user", "stop", "target"], how="anti")
    return replace(shots, rows=rows), valid


def score_references(
    recipe: Recipe, own: Prepared, samples: Samples, out: Path, *, say: Say = print
) -> list[System]:
    """The recommenders on all the data that a recipe names; the same whatever the seed.

    Args:
        recipe: Its `evaluation` says which.
        own: What they are fitted on; see `full_data`.
        samples: What to score.
        out: Where scores are kept.
        say: Shows a line to the user.
    """
    names = recipe.evaluation.references
    if not names:
        return []
    known = known_before(own, samples)

    def fit_and_score(name: str) -> FloatArray:
        say(f"Fitting {name} on all data: {in_words(known)}")
        return REFERENCES[name](known)(samples)

    systems = []
    for name in names:
        scores = kept(out / f"{name}.parquet", samples, partial(fit_and_score, name))
        systems.append(System(f"{name}, full data", "full data", scores[None]))
    return systems


def known_before(own: Prepared, samples: Samples) -> Samples:
    """All that may be known before samples are asked about; see `full_data`."""
    info = own.info
    return full_data(own.splits, samples, history=info.history, min_history=info.min_history)


def in_words(known: Samples) -> str:
    """How much that is."""
    return f"{len(known):,} samples of {len(np.unique(known.users)):,} users"


def count(recipe: Recipe, own: Prepared, samples: Samples) -> list[System]:
    """The counting baselines, fitted on the same shots as each seed's adapter."""
    shots = [labelled_of(recipe, own, seed) for seed in recipe.seeds]
    return counting_systems(shots, samples)


def counting_systems(shots: Sequence[Samples], samples: Samples) -> list[System]:
    """Every counting baseline on these samples.

    Args:
        shots: What it is fitted on, once for each seed.
        samples: What is scored.
    """
    systems = []
    for name, fit in COUNTING_BASELINES.items():
        scores = [fit(of_seed)(samples) for of_seed in shots]
        if all(np.array_equal(scores[0], other) for other in scores[1:]):
            scores = scores[:1]  # it learns nothing, so seeds do not differ
        systems.append(System(name, COUNTING, np.array(scores)))
    return systems
