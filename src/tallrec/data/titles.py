"""Titles found as a person types them: any case, order of words or accents, slips of the keys."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from rapidfuzz import fuzz, process, utils

from tallrec.types import FloatArray, Item

_YEAR = re.compile(r"\s*\(\d{4}\)\s*$")
_ARTICLES = {"a", "an", "the"}
_PART = 0.9  # a part of a title is less near than the whole


@dataclass(frozen=True)
class Match:
    """An item that a search found.

    Attributes:
        item: The item.
        similarity: How near its title is to what was asked for, 0 to 100; 100 is the same words.
    """

    item: Item
    similarity: float


@dataclass(frozen=True)
class TitleIndex:
    """The titles of a catalogue, to be searched.

    Attributes:
        catalog: `item`, `title`, `creator`.
        popularity: How often each item was met, shape [n_items]; of equally near titles the more
            popular comes first.
    """

    catalog: pl.DataFrame
    popularity: FloatArray
    _full: list[str] = field(init=False, repr=False)
    _bare: list[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        titles = self.catalog["title"].to_list()
        object.__setattr__(self, "_full", [_words(title) for title in titles])
        object.__setattr__(self, "_bare", [_words(_YEAR.sub("", title)) for title in titles])

    def find(self, query: str, limit: int = 5) -> list[Match]:
        """The items with the nearest titles, nearest first.

        Args:
            query: A title or a part of one; its year may be given.
            limit: How many to return.
        """
        words = _words(query)
        if not words:
            return []
        similarity = self._similarity(words)
        best = np.lexsort((-self.popularity, -similarity))[:limit]
        columns = self.catalog[best].select("item", "title", "creator")
        return [
            Match(Item(*row), float(score))
            for row, score in zip(columns.iter_rows(), similarity[best], strict=True)
        ]

    def _similarity(self, words: str) -> FloatArray:
        """How near each title is, 0 to 100, shape [n_items]: as a whole, or with its rest left out.

        RapidFuzz's own partial ratios find short titles within longer words ("M" in "Matrix").
        """
        asked = words.split()
        beginnings = [" ".join(title.split()[: len(asked)]) for title in self._bare]
        contained = [set(asked) <= set(title.split()) for title in self._full]
        ratios = [
            _ratios(fuzz.token_sort_ratio, words, self._full),
            _ratios(fuzz.token_sort_ratio, words, self._bare),
            _PART * _ratios(fuzz.ratio, words, beginnings),
            _PART * 100 * np.array(contained, dtype=np.float64),
        ]
        nearest: FloatArray = np.maximum.reduce(ratios)
        return nearest

    def match(self, query: str, *, at_least: float = 80.0) -> Item:
        """The item that a title means.

        Args:
            query: A title.
            at_least: The lowest similarity that counts as meant.

        Raises:
            ValueError: If no title is near enough; the nearest are named.
        """
        found = self.find(query, limit=3)
        if found and found[0].similarity >= at_least:
            return found[0].item
        nearest = ", ".join(repr(match.item.title) for match in found) or "none"
        raise ValueError(f"no title is like {query!r}; the nearest: {nearest}")


def _words(text: str) -> str:
    """Lower-case words without accents, punctuation and articles (unless there is nothing else)."""
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    words = utils.default_process(plain).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def _ratios(ratio: Callable[..., float], query: str, titles: list[str]) -> FloatArray:
    ratios: FloatArray = process.cdist([query], titles, scorer=ratio)[0].astype(np.float64)
    return ratios
