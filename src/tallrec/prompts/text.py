"""Titles are data: whatever a title holds, it stays between the quotes of its slot."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tallrec.types import Item

_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")  # control characters, ends of lines
# Characters that nobody sees: they reorder a line, hide text in it, or make a heading look like
# none. The joiners U+200C and U+200D stay: Persian, Indic scripts and emoji are written with them.
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
_SURROGATES = re.compile("[\ud800-\udfff]")  # halves of characters, which no tokenizer takes
# The wide forms count too: some tokenizers turn them into the plain ones.
_QUOTES = re.compile('["\uff02]')
_HEADINGS = re.compile("[#\ufe5f\uff03]{2,}")


def clean(text: str) -> str:
    """Makes a title safe for its slot; ordinary titles come back unchanged.

    Control characters and line breaks become one space, double quotes (which close the slot)
    single ones, and runs of `#` (which open a section of the instruction format) one `#`;
    invisible characters go.
    """
    text = _INVISIBLE.sub("", _BREAKS.sub(" ", text))
    text = _QUOTES.sub("'", _SURROGATES.sub("\ufffd", text))
    return _HEADINGS.sub("#", text).strip()


def quoted(item: Item, by: str) -> str:
    """`"Title"`, followed by the creator where one is known: `"Title" by Creator`."""
    title, creator = clean(item.title) or "untitled", clean(item.creator or "")
    return f'"{title}" {by} {creator}' if creator else f'"{title}"'


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text with slots for answers: piece, answer, piece, answer, ... the target's answer last.

    Attributes:
        pieces: The text before each answer.
        likes: The answer after each piece; the last is None where it is not known.
    """

    pieces: tuple[str, ...]
    likes: tuple[bool | None, ...]
