"""Histories as padded tensors, for models that read a user's items in their order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from tallrec.baselines.matrices import item_numbers
from tallrec.types import Samples

# Shape letters: b samples, t places of a history, n items of a catalogue.


@dataclass(frozen=True)
class Sequences:
    """A batch of questions. An item's number is 1 + its code in the fitted catalogue; 0 is none.

    Attributes:
        items_bt: The latest items of each history, the last one last; 0 on the left where a
            history is shorter, or an item is not in the fitted catalogue.
        likes_bt: 1 where the user liked that item, else 0.
        targets_b: The items asked about; 0 where one is not in the fitted catalogue.
    """

    items_bt: Tensor
    likes_bt: Tensor
    targets_b: Tensor

    def __len__(self) -> int:
        return len(self.targets_b)

    def __getitem__(self, rows: Tensor | slice) -> Sequences:
        return Sequences(self.items_bt[rows], self.likes_bt[rows], self.targets_b[rows])


def to_sequences(samples: Samples, catalog: pl.DataFrame, length: int) -> Sequences:
    """Reads the histories and targets of samples.

    Args:
        samples: What to read; labels are not looked at.
        catalog: The fitted catalogue. Items are matched by id: the samples may have another one.
        length: How many of the latest events are read.
    """
    numbers_n = item_numbers(samples.catalog, catalog)
    starts, stops = samples.spans.T
    at_bt = stops[:, None] - np.arange(length, 0, -1)
    real_bt = at_bt >= starts[:, None]
    at_bt = np.where(real_bt, at_bt, 0)
    items_bt = np.zeros(at_bt.shape, dtype=np.int64)
    likes_bt = np.zeros(at_bt.shape, dtype=np.int64)
    if samples.events.height:
        items_bt = np.where(real_bt, numbers_n[samples.event_items[at_bt]], 0)
        likes_bt = np.where(real_bt, samples.event_likes[at_bt], 0)
    arrays = items_bt, likes_bt, numbers_n[samples.targets]
    return Sequences(*(torch.from_numpy(array.astype(np.int64)) for array in arrays))
