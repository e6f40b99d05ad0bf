"""A fitted process as a file: the shots' opinions, the vectors of titles and the weights."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl

from tallrec.files import whole_file
from tallrec.gaussian.fitting import Weights
from tallrec.gaussian.inputs import Shown
from tallrec.gaussian.process import GaussianProcess
from tallrec.gaussian.titles import Describe, Principal, Titles


def save_process(process: GaussianProcess, path: Path) -> None:
    """Writes a process; its catalogue and backbone are not in the file.

    Vectors are written in single precision, whose rounding moves no score by more than 1e-4.
    """
    titles = process.titles
    arrays = {
        **asdict(process.shown),
        "vectors": titles.vectors.astype(np.float32),
        "mean": titles.principal.mean,
        "directions": titles.principal.directions,
        "weights": np.array(json.dumps(asdict(process.weights))),
    }
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_process(path: Path, catalog: pl.DataFrame, describe: Describe) -> GaussianProcess:
    """Reads what `save_process` wrote.

    Args:
        path: The file.
        catalog: The catalogue that it was fitted on.
        describe: Gives hidden states for titles of other catalogues.

    Raises:
        ValueError: If the file is none, or of another catalogue.
    """
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no Gaussian process that can be read: {error}") from None
    vectors = arrays["vectors"].astype(np.float64)
    if len(vectors) != catalog.height:
        raise ValueError(
            f"{path} knows {len(vectors):,} items, but the catalogue has {catalog.height:,}"
        )
    shown = Shown(**{name: arrays[name] for name in ("users", "positions", "items", "liked")})
    principal = Principal(arrays["mean"], arrays["directions"])
    weights = Weights(**json.loads(str(arrays["weights"])))
    return GaussianProcess(shown, Titles(catalog, vectors, principal, describe), weights)
