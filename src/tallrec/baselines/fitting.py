"""One loop for every small network: Adam on the shots, the best epoch on validation samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from tallrec.baselines.networks import SequentialNetwork, robust_loss
from tallrec.baselines.sequences import Sequences, to_sequences
from tallrec.types import Samples


@dataclass(frozen=True)
class FitOptions:
    """How a network is fitted.

    Attributes:
        width: Of the vectors of items and states.
        length: How many of the latest events are read.
        learning_rate: Of Adam.
        weight_decay: Of Adam.
        dropout: Wherever the network has it.
        epochs: Passes over the shots, at most.
        batch_size: Samples in one step.
        patience: Stop after this many epochs without a better validation AUC.
        seed: Seeds weights, order and dropout.
    """

    width: int = 64
    length: int = 10
    learning_rate: float = 1e-3
    weight_decay: float = 1e-6
    dropout: float = 0.1
    epochs: int = 50
    batch_size: int = 32
    patience: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Fitted:
    """A network in evaluation mode, and its AUC on validation samples (NaN without any)."""

    network: SequentialNetwork
    validation_auc: float


def fit_network(
    build: Callable[[], SequentialNetwork],
    shots: Samples,
    valid: Samples | None,
    options: FitOptions,
    *,
    robust: float = 0.0,
) -> Fitted:
    """Fits a network by the binary cross-entropy of its log-odds; the same seed gives the same.

    Args:
        build: Makes the network; its random numbers are seeded.
        shots: Labelled samples.
        valid: Labelled samples; the weights of the epoch with the best AUC on them are kept.
        options: How to fit.
        robust: Weight of `robust_loss`, which is added.

    Raises:
        ValueError: If a sample has no label.
    """
    asked, likes_b = _tensors(shots, shots.catalog, options.length)
    held_out = _tensors(valid, shots.catalog, options.length) if valid is not None else None
    shares_n = _nominal(asked, shots.catalog.height)
    best, waited = None, 0
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        network = build()
        optimizer = torch.optim.Adam(
            network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        for _ in range(options.epochs):
            network.train()
            steps = math.ceil(len(asked) / options.batch_size)
            for rows_b in torch.randperm(len(asked)).tensor_split(steps):
                loss = _loss(network, asked[rows_b], likes_b[rows_b], robust, shares_n)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            if held_out is None:
                continue
            auc = _auc(network, *held_out)
            if best is None or auc > best.validation_auc:
                best, waited = Fitted(copy.deepcopy(network).eval(), auc), 0
            elif (waited := waited + 1) >= options.patience:
                break
    return best or Fitted(network.eval(), math.nan)


def _tensors(samples: Samples, catalog: pl.DataFrame, length: int) -> tuple[Sequences, Tensor]:
    labels_b = torch.from_numpy(samples.labels.astype(np.float32))
    return to_sequences(samples, catalog, length), labels_b


def _nominal(asked: Sequences, n_items: int) -> Tensor:
    """How popular each item is among all that the shots show, flattened as in DROS's code."""
    shown = torch.cat([asked.items_bt.flatten(), asked.targets_b])
    counts_n = torch.bincount(shown, minlength=n_items + 1)[1:] + 1
    return (counts_n / counts_n.sum()) ** 0.05


def _loss(
    network: SequentialNetwork,
    batch: Sequences,
    likes_b: Tensor,
    robust: float,
    shares_n: Tensor,
) -> Tensor:
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    if not robust:
        return loss(network(batch), likes_b)
    odds_bn = network.of_all_items(batch, len(shares_n))
    odds_b = odds_bn.gather(1, batch.targets_b[:, None] - 1).squeeze(1)
    return loss(odds_b, likes_b) + robust * robust_loss(odds_bn, batch, likes_b, shares_n)


@torch.no_grad()
def _auc(network: SequentialNetwork, asked: Sequences, likes_b: Tensor) -> float:
    network.eval()
    odds_b = network(asked)
    if likes_b.min() == likes_b.max() or not odds_b.isfinite().all():
        return 0.0
    return float(roc_auc_score(likes_b.numpy(), odds_b.numpy()))
