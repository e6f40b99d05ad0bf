"""What a person types, as histories and candidates: titles, lists in files, patterns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tallrec.steps.recommender import Recommender


def history_of_titles(
    recommender: Recommender, likes: Sequence[str], dislikes: Sequence[str]
) -> list[tuple[str, bool]]:
    """The history that titles stand for, likes first.

    Args:
        recommender: Finds titles in its catalogue.
        likes: Titles, or several in one text with semicolons between them.
        dislikes: The same.

    Raises:
        ValueError: If a title is not found, or means the same item as another.
    """
    history: dict[str, bool] = {}
    for texts, liked in ((likes, True), (dislikes, False)):
        for title in (title for text in texts for title in _titles(recommender, text)):
            item = recommender.match(title)
            if item.id in history:
                raise ValueError(f"{title!r} means {item.title!r}, which is given twice")
            history[item.id] = liked
    return list(history.items())


def _titles(recommender: Recommender, text: str) -> list[str]:
    """A text as one title if there is such a one, else its parts between semicolons."""
    parts = [part for part in text.split(";") if part.strip()]
    whole = recommender.find(text, limit=1)
    return parts if len(parts) > 1 and whole[0].similarity < 100 else [text]


def candidates_of(
    recommender: Recommender,
    *,
    only: str | None = None,
    listed: Path | None = None,
    excluded: Path | None = None,
) -> list[str]:
    """The ids of the items that pass all filters, in the order of the catalogue or list.

    Args:
        recommender: Whose catalogue.
        only: A regular expression that a title must hold, in any case.
        listed: A text file with one id or title a line: nothing else.
        excluded: A text file of the same kind: none of these.

    Raises:
        ValueError: If the expression is none, a line is not found, or nothing passes.
    """
    titles = dict(recommender.items.select("item", "title").iter_rows())
    ids = _read_items(recommender, listed) if listed else list(titles)
    without = set(_read_items(recommender, excluded)) if excluded else set()
    try:
        pattern = re.compile(only or "", re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"--only takes a regular expression; {only!r}: {error}") from None
    left = [item for item in ids if item not in without and pattern.search(titles[item])]
    if not left:
        raise ValueError("no item passes the filters: give fewer or wider ones")
    return left


def _read_items(recommender: Recommender, path: Path) -> list[str]:
    known = set(recommender.items["item"])
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text:
            continue
        try:
            items.append(text if text in known else recommender.match(text).id)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return items
