"""The sequential recommenders that the paper compares with, fitted on the same shots.

All share one shape: a reader turns the history into a state, and the log-odds of a like are the
product of that state and the target's vector. An event is the vector of its item plus one of its
feedback, like or dislike. The paper does not say how likes enter these models; its authors do in
answers to users of their code (April 2024): as in Wang et al. (2022), "Unbiased Sequential
Recommendation with Latent Confounders", where feedback is an input beside the item.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from tallrec.baselines.fitting import FitOptions, Fitted, fit_network
from tallrec.baselines.networks import SequentialNetwork, Titles, item_table
from tallrec.baselines.readers import Convolutions, Gru, SelfAttention
from tallrec.baselines.sequences import to_sequences
from tallrec.types import FloatArray, Samples, Scorer

Encode = Callable[[tuple[str, ...]], Tensor]
"""Titles to vectors, one row a title."""

_SCORED_AT_ONCE = 4096


@dataclass(frozen=True)
class Architecture:
    """What makes one recommender of the paper.

    Attributes:
        reader: What reads the history; called with width, length and dropout.
        robust: Weight of the distributionally robust part of the loss.
        by_title: Whether items have vectors of their titles instead of vectors of their own.
    """

    reader: Callable[[int, int, float], nn.Module]
    robust: float = 0.0
    by_title: bool = False


SEQUENTIAL: dict[str, Architecture] = {
    "gru4rec": Architecture(Gru),
    "caser": Architecture(Convolutions),
    "sasrec": Architecture(SelfAttention),
    "dros": Architecture(SelfAttention, robust=0.1),
    "gru-bert": Architecture(Gru, by_title=True),
    "dros-bert": Architecture(SelfAttention, robust=0.1, by_title=True),
}
"""The paper's baselines (TALLRec, section 4.1). DROS reads as SASRec does, its paper's best."""

GRID: dict[str, tuple[float, ...]] = {
    "learning_rate": (1e-2, 1e-3, 1e-4),
    "weight_decay": (1e-2, 1e-4, 1e-6),
}
"""What is tried where there are validation samples; the best validation AUC decides."""


def fit_sequential(
    name: str,
    shots: Samples,
    *,
    valid: Samples | None = None,
    options: FitOptions | None = None,
    encode: Encode | None = None,
) -> Scorer:
    """Fits a sequential recommender.

    Args:
        name: A key of `SEQUENTIAL`.
        shots: Labelled samples.
        valid: Labelled samples that choose from `GRID` and stop fitting; without them the options
            are taken as they are and all epochs run.
        options: How to fit.
        encode: Titles to vectors; the architectures that go by title need it.

    Returns:
        A scorer; NaN for a target that is not in the shots' catalogue.

    Raises:
        ValueError: If there is no such architecture, no shot, or a shot without a label.
    """
    if name not in SEQUENTIAL:
        raise ValueError(f"there is no {name!r}; choose from {', '.join(SEQUENTIAL)}")
    if not len(shots):
        raise ValueError("there is nothing to fit on: give at least one shot")
    options = options or FitOptions()
    architecture = SEQUENTIAL[name]
    titles_nd = None
    if architecture.by_title:
        if encode is None:
            raise ValueError(f"{name} needs an encoder of titles")
        titles_nd = encode(tuple(shots.catalog["title"]))
    tried = [options] if valid is None else _grid(options)
    fitted = [_fit(architecture, shots, valid, one, titles_nd) for one in tried]
    best = max(fitted, key=lambda one: one.validation_auc)
    return _scorer(best.network, shots.catalog, options.length)


def _grid(options: FitOptions) -> list[FitOptions]:
    return [
        replace(options, learning_rate=rate, weight_decay=decay)
        for rate, decay in itertools.product(*GRID.values())
    ]


def _fit(
    architecture: Architecture,
    shots: Samples,
    valid: Samples | None,
    options: FitOptions,
    titles_nd: Tensor | None,
) -> Fitted:
    def build() -> SequentialNetwork:
        reader = architecture.reader(options.width, options.length, options.dropout)
        if titles_nd is None:
            return SequentialNetwork(item_table(n_items, options.width), reader, options.width)
        return SequentialNetwork(Titles(titles_nd, options.width), reader, options.width)

    n_items = shots.catalog.height
    return fit_network(build, shots, valid, options, robust=architecture.robust)


def _scorer(network: SequentialNetwork, catalog: pl.DataFrame, length: int) -> Scorer:
    @torch.no_grad()
    def score(samples: Samples) -> FloatArray:
        asked = to_sequences(samples, catalog, length)
        parts = [asked[i : i + _SCORED_AT_ONCE] for i in range(0, len(asked), _SCORED_AT_ONCE)]
        scores = np.concatenate([np.zeros(0), *(network(part).double().numpy() for part in parts)])
        return np.where(asked.targets_b.numpy() > 0, scores, np.nan)

    return score
