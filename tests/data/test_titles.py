"""Titles are found as people type them, and what is not there is not guessed."""

import numpy as np
import polars as pl
import pytest

from tallrec.data.titles import TitleIndex

TITLES = [
    "Café Lumière (2003)",
    "Harbour, The (1998)",
    "Harbour of Ghosts (2001)",
    "Quarry IV: The Long Way Down (1991)",
    "Night Train (1961)",
    "Night Train (1999)",
    "M (1931)",
]
CATALOG = pl.DataFrame(
    {"item": [f"i{i}" for i in range(len(TITLES))], "title": TITLES}
).with_columns(creator=pl.lit(None, pl.String))
INDEX = TitleIndex(CATALOG, np.array([0.0, 0, 0, 0, 1, 7, 0]))


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("cafe lumiere", "Café Lumière (2003)"),
        ("The Harbour", "Harbour, The (1998)"),
        ("harbuor of gosts", "Harbour of Ghosts (2001)"),
        ("quarry 4 the long way down", "Quarry IV: The Long Way Down (1991)"),
        ("quary iv", "Quarry IV: The Long Way Down (1991)"),
        ("the long way down", "Quarry IV: The Long Way Down (1991)"),
        ("night train", "Night Train (1999)"),
        ("night train 1961", "Night Train (1961)"),
        ("m", "M (1931)"),
    ],
)
def test_a_title_is_found(query, title):
    assert INDEX.match(query).title == title


@pytest.mark.parametrize("query", ["matrix", "hrb", "", "?!"])
def test_what_is_not_there_is_not_guessed(query):
    with pytest.raises(ValueError, match="no title is like"):
        INDEX.match(query)


def test_the_nearest_are_named():
    with pytest.raises(ValueError, match="no title is like 'harbingers'; the nearest: 'Harbour"):
        INDEX.match("harbingers")


def test_the_nearest_come_first_with_their_similarity():
    first, second = INDEX.find("harbour", limit=2)
    assert (first.item.id, first.similarity) == ("i1", 100)
    assert second.item.id == "i2"
    assert second.similarity < 100
    assert len(INDEX.find("harbour", limit=50)) == len(TITLES)
