"""The covariance of two opinions: a sum of parts, each with a weight and a meaning.

An additive kernel (Duvenaud et al., 2011, "Additive Gaussian Processes") whose parts are those of a
mixed-effects model: what an item is worth to everyone, how generous a user is, and what kinds of
items this user likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from tallrec.gaussian.inputs import Items, Opinions
from tallrec.types import FloatArray, IntArray

# Chosen among 3, 10 and 30 on validation users of MovieLens-100K, split `users`; the optimum is
# flat. What a user's answer says of their next ones has lost a factor e after as many events.
RECENT_EVENTS = 10.0


def _alike(a: IntArray, b: IntArray) -> FloatArray:
    same: FloatArray = np.logical_and(a[:, None] == b[None], a[:, None] >= 0).astype(np.float64)
    return same


def _products(a: FloatArray, b: FloatArray) -> FloatArray:
    products: FloatArray = np.outer(np.nan_to_num(a), np.nan_to_num(b))
    return products


def _nearness(a: FloatArray, b: FloatArray) -> FloatArray:
    """1 for the same, less the further apart, 0 where one is unknown."""
    apart = a[:, None] - b[None]
    near: FloatArray = np.nan_to_num(np.exp(-0.5 * apart**2))
    return near


ITEM_PARTS: dict[str, Callable[[Items, Items], FloatArray]] = {
    "everything": lambda a, b: np.ones((len(a.codes), len(b.codes))),
    "item": lambda a, b: _alike(a.codes, b.codes),
    "creator": lambda a, b: _alike(a.creators, b.creators),
    "year": lambda a, b: _products(a.years, b.years),
    "decade": lambda a, b: _nearness(a.years, b.years),
    "popularity": lambda a, b: _products(a.popularity, b.popularity),
    "title": lambda a, b: a.vectors @ b.vectors.T,
}
"""What opinions share whoever says them, each with weight 1: shape [n, m] from n and m items."""

USER_PARTS: dict[str, Callable[[Opinions, Opinions], FloatArray]] = {
    "user": lambda a, b: np.ones((len(a.users), len(b.users))),
    "user, lately": lambda a, b: np.exp(
        -np.abs(a.positions[:, None] - b.positions[None]) / RECENT_EVENTS
    ),
    "user, creator": lambda a, b: ITEM_PARTS["creator"](a.items, b.items),
    "user, year": lambda a, b: ITEM_PARTS["year"](a.items, b.items),
    "user, title": lambda a, b: ITEM_PARTS["title"](a.items, b.items),
}
"""What opinions of one user share beyond that; those of different users share none of it."""


def part_covariances(a: Opinions, b: Opinions) -> Iterator[tuple[str, FloatArray]]:
    """Each part by name, with weight 1, shape [n, m]."""
    for name, of_items in ITEM_PARTS.items():
        yield name, of_items(a.items, b.items)
    same_user = _alike(a.users, b.users)
    for name, of_opinions in USER_PARTS.items():
        yield name, same_user * of_opinions(a, b)


def covariance(weights: Mapping[str, float], a: Opinions, b: Opinions) -> FloatArray:
    """The weighted sum of all parts, shape [n, m]."""
    total = item_covariance(weights, a.items, b.items)
    same_user = _alike(a.users, b.users)
    for name, of_opinions in USER_PARTS.items():
        if name in weights:
            total += weights[name] * same_user * of_opinions(a, b)
    return total


def item_covariance(weights: Mapping[str, float], a: Items, b: Items) -> FloatArray:
    """The weighted sum of what opinions of different users share, shape [n, m]."""
    total = np.zeros((len(a.codes), len(b.codes)))
    for name, of_items in ITEM_PARTS.items():
        if name in weights:
            total += weights[name] * of_items(a, b)
    return total
