"""The timeline template: one line an item in order, each followed by its answer, the target last.

One forward pass supervises every answer of the row instead of one; the text only grows at its end,
so that a user's prefix serves every candidate.
"""

from __future__ import annotations

from tallrec.prompts.text import Prompt, quoted
from tallrec.types import Sample


def render_timeline(sample: Sample, domain: str) -> Prompt:
    """An instruction line, then `"Title (1995)": Yes` lines; the answers follow each colon."""
    items = [*(item for item, _ in sample.history), sample.target]
    lines = [f"{quoted(item, 'by')}:" for item in items]
    pieces = [_instruction(domain) + lines[0], *("\n" + line for line in lines[1:])]
    return Prompt(tuple(pieces), (*(like for _, like in sample.history), sample.liked))


def _instruction(domain: str) -> str:
    did = {"movie": "watched", "book": "read"}.get(domain, "rated")
    return f"{domain.capitalize()}s that a user {did}, and whether the user liked each one.\n"
