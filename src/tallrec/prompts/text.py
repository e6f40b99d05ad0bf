"""Titles are data: whatever a title holds, it stays between the quotes of its slot."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tallrec.types import Item

# Control characters, line and paragraph separators, and the marks that reorder text on a screen.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
_HEADINGS = re.compile(r"#{2,}")


def clean(text: str) -> str:
    """Makes a title safe for its slot; ordinary titles come back unchanged.

    Control characters and line breaks become one space, double quotes (which close the slot)
    single ones, and runs of `#` (which open a section of the instruction format) one `#`.
    """
    text = _UNSAFE.sub(" ", text).replace('"', "'")
    return _HEADINGS.sub("#", text).strip()


def quoted(item: Item, by: str) -> str:
    """`"Title"`, followed by the creator where one is known: `"Title" by Creator`."""
    title = f'"{clean(item.title)}"'
    return f"{title} {by} {clean(item.creator)}" if item.creator else title


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text with slots for answers: piece, answer, piece, answer, ... the target's answer last.

    Attributes:
        pieces: The text before each answer.
        likes: The answer after each piece; the last is None where it is not known.
    """

    pieces: tuple[str, ...]
    likes: tuple[bool | None, ...]
