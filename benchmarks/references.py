"""Compares settings of the full-data references on the validation part of the paper's movie data.

The constants of `tallrec.baselines.references` were chosen with this script; no test row is read:

    tallrec prepare movielens-100k --split paper --out data/movies
    python benchmarks/references.py data/movies
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tallrec.baselines import references
from tallrec.data.prepared import read_prepared
from tallrec.data.samples import full_data
from tallrec.evaluate import METRICS
from tallrec.types import Samples

ALS = [
    {"factors": factors, "regularization": regularization, "alpha": alpha}
    for factors, regularization, alpha in [
        *((factors, 10.0, 100.0) for factors in (4, 8, 16, 32)),
        *((8, regularization, 100.0) for regularization in (1.0, 100.0)),
        *((8, 10.0, alpha) for alpha in (3.0, 10.0, 40.0)),
    ]
]
BOOSTING = [
    {"learning_rate": rate, "max_iter": rounds, "max_leaf_nodes": leaves, "min_samples_leaf": 100}
    for rate, rounds in ((0.03, 200), (0.03, 400), (0.1, 100), (0.1, 400))
    for leaves in (4, 8, 15, 31)
]
TRIED: dict[str, tuple[str, list[Any]]] = {
    "item-knn": ("NEIGHBOURS", [20, 50, 100, 150, 200, 2000]),
    "matrix-factorization": ("ALS", ALS),
    "gradient-boosting": ("BOOSTING", BOOSTING),
}


def show(name: str, known: Samples, valid: Samples) -> None:
    """Fits a reference and prints one line of figures."""
    scores = references.REFERENCES[name](known)(valid)
    figures = (
        f"{metric} {METRICS[metric](valid.labels, scores, valid.users):.4f}"
        for metric in ("auc", "gauc", "log_loss")
    )
    print(f"{name:22}", *figures, end=" ", flush=True)


def main() -> None:
    """Tries all settings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a prepared folder")
    prepared = read_prepared(parser.parse_args().data)
    valid, info = prepared.splits.valid, prepared.info
    everything = full_data(
        prepared.splits,
        prepared.splits.valid,
        history=info.history,
        min_history=info.min_history,
    )
    for known in (prepared.splits.train, everything):
        print(f"on {len(known):,} samples, as they are:")
        for name in references.REFERENCES:
            show(name, known, valid)
            print()
    for name, (constant, values) in TRIED.items():
        for value in values:
            setattr(references, constant, value)
            show(name, everything, valid)
            print(value)


if __name__ == "__main__":
    main()
