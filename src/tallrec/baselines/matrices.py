"""Opinions as sparse matrices, for models that read who liked what and not in which order.

A like is +1, a dislike -1. An item's column is 1 + its code in the fitted catalogue; column 0
stands for every item that this catalogue does not have, and is empty.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix

from tallrec.baselines.trivial import ITEM_PRIOR_EVENTS, opinions
from tallrec.types import FloatArray, IntArray, Samples


def user_matrix(samples: Samples) -> csr_matrix:
    """All that samples show of each user, targets and histories, shape [n_users, 1 + n_items].

    Raises:
        ValueError: If a sample has no label.
    """
    shown = opinions(samples)
    _, rows = np.unique(shown["user"].to_physical().to_numpy(), return_inverse=True)
    columns = item_numbers(shown, samples.catalog)
    signs = np.where(shown["liked"].to_numpy(), 1.0, -1.0)
    shape = (int(rows.max(initial=-1)) + 1, 1 + samples.catalog.height)
    matrix = csr_matrix((signs, (rows, columns)), shape=shape)
    matrix.eliminate_zeros()  # of someone who liked an item and disliked it
    return matrix


def history_matrix(samples: Samples, catalog: pl.DataFrame) -> csr_matrix:
    """The history of each sample, shape [n, 1 + n_items]."""
    starts, stops = samples.spans.T
    lengths = stops - starts
    rows = np.repeat(np.arange(len(samples)), lengths)
    before = np.cumsum(lengths) - lengths
    events = np.arange(len(rows)) + np.repeat(starts - before, lengths)
    columns = item_numbers(samples.catalog, catalog)[samples.event_items[events]]
    signs = np.where(samples.event_likes[events], 1.0, -1.0)
    known = columns > 0
    shape = (len(samples), 1 + catalog.height)
    return csr_matrix((signs[known], (rows[known], columns[known])), shape=shape)


def target_columns(samples: Samples, catalog: pl.DataFrame) -> IntArray:
    """The column of each sample's target, shape [n]."""
    return item_numbers(samples.catalog, catalog)[samples.targets]


def item_counts(matrix: csr_matrix) -> tuple[IntArray, IntArray]:
    """Likes and dislikes of each item, two arrays of shape [1 + n_items]."""
    likes, dislikes = ((sign * matrix > 0).sum(axis=0) for sign in (1, -1))
    return np.asarray(likes, dtype=np.int64).ravel(), np.asarray(dislikes, dtype=np.int64).ravel()


def item_shares(matrix: csr_matrix) -> FloatArray:
    """Each item's share of likes, shrunk as in `fit_item_mean`, shape [1 + n_items]."""
    likes, dislikes = item_counts(matrix)
    mean = (likes.sum() + 1) / (matrix.nnz + 2)
    shares: FloatArray = (likes + ITEM_PRIOR_EVENTS * mean) / (likes + dislikes + ITEM_PRIOR_EVENTS)
    return shares


def less_item_shares(matrix: csr_matrix, shares: FloatArray) -> csr_matrix:
    """How much more each opinion is a like (1) or not (0) than its item's share of likes."""
    surprise = matrix.copy()
    surprise.data = (matrix.data > 0) - shares[matrix.indices]
    return surprise


def item_numbers(asked: pl.DataFrame, fitted: pl.DataFrame) -> IntArray:
    """For each item of a catalogue 1 + its row in the fitted one, or 0, shape [n]."""
    numbered = fitted.select("item").with_row_index("number", offset=1)
    joined = asked.select("item").join(numbered, on="item", how="left", maintain_order="left")
    return joined["number"].fill_null(0).cast(pl.Int64).to_numpy()
