"""What titles say: their year, their creator, and where the backbone places them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from tallrec.gaussian.inputs import Items
from tallrec.types import FloatArray, IntArray

Describe = Callable[[pl.DataFrame], FloatArray]
"""Hidden states of the titles of a catalogue's rows, shape [n, width]."""

_YEAR = re.compile(r"\((\d{4})\)\s*$")


@dataclass(frozen=True)
class Principal:
    """The directions in which the titles of a catalogue differ most (principal components).

    Each dimension is standardized first: some of a language model's are hundreds of times as large
    as the others. The catalogue's vectors have a mean square length of 1.

    Attributes:
        mean: Of each dimension, shape [width].
        directions: Shape [width, d]; the scale of each dimension included.
    """

    mean: FloatArray
    directions: FloatArray

    @classmethod
    def of(cls, hidden: FloatArray, components: int) -> Principal:
        """The first components of hidden states, shape [n, width]."""
        mean, scale = hidden.mean(axis=0), hidden.std(axis=0) + 1e-6
        standard = (hidden - mean) / scale
        _, _, directions = np.linalg.svd(standard, full_matrices=False)
        kept = directions[:components].T
        length = np.sqrt(((standard @ kept) ** 2).sum(axis=1).mean()) or 1.0
        return cls(mean, kept / scale[:, None] / length)

    def __call__(self, hidden: FloatArray) -> FloatArray:
        """Vectors, shape [n, d], of hidden states, shape [n, width]."""
        vectors: FloatArray = (hidden - self.mean) @ self.directions
        return vectors


@dataclass(frozen=True)
class Titles:
    """The items of a catalogue and what is known of their titles.

    Attributes:
        catalog: `item`, `title`, `creator`; see `Samples`.
        vectors: Of its items, shape [n_items, d].
        principal: Makes vectors of hidden states.
        describe: Gives hidden states for titles of other catalogues.
    """

    catalog: pl.DataFrame
    vectors: FloatArray
    principal: Principal
    describe: Describe

    @classmethod
    def of(cls, catalog: pl.DataFrame, describe: Describe, components: int) -> Titles:
        """Reads a whole catalogue.

        Args:
            catalog: The items.
            describe: Gives hidden states.
            components: How many numbers a vector has.
        """
        hidden = describe(catalog)
        principal = Principal.of(hidden, components)
        return cls(catalog, principal(hidden), principal, describe)

    def items_of(self, catalog: pl.DataFrame, counts: IntArray) -> Items:
        """The items of this or another catalogue; those of the same id are the same.

        Args:
            catalog: The items.
            counts: How many opinions the shots have about each item of the own catalogue, shape
                [n_items].
        """
        codes, creators = self._codes(catalog)
        new = codes >= len(self.vectors)
        known = np.where(new, 0, codes)
        vectors = self.vectors[known]
        if new.any():
            vectors[new] = self.principal(self.describe(catalog.filter(pl.Series(new))))
        popularity = np.where(new, 0.0, np.log1p(counts[known]))
        return Items(codes, creators, _years(catalog), popularity, vectors)

    def _codes(self, catalog: pl.DataFrame) -> tuple[IntArray, IntArray]:
        """Codes of items and of creators, those of other catalogues behind the own."""
        items, creators = dict(self._item_codes), dict(self._creator_codes)
        item_codes = [items.setdefault(item, len(items)) for item in catalog["item"]]
        creator_codes = [
            -1 if creator is None else creators.setdefault(creator, len(creators))
            for creator in catalog["creator"]
        ]
        return np.array(item_codes), np.array(creator_codes)

    @cached_property
    def _item_codes(self) -> dict[str, int]:
        return {item: code for code, item in enumerate(self.catalog["item"])}

    @cached_property
    def _creator_codes(self) -> dict[str, int]:
        creators = self.catalog["creator"].drop_nulls().unique(maintain_order=True)
        return {creator: code for code, creator in enumerate(creators)}


def _years(catalog: pl.DataFrame) -> FloatArray:
    """Decades since 1990, from the year in brackets at the end of a title; NaN without one."""
    found = (_YEAR.search(title) for title in catalog["title"])
    years = np.array([float(match[1]) if match else np.nan for match in found])
    return (years - 1990) / 10
