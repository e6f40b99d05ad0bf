"""Samples become text with slots for answers, and text becomes tokens with answer positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tallrec.prompts.paper import render_paper, render_paper_clean
from tallrec.prompts.text import Prompt
from tallrec.prompts.timeline import render_timeline
from tallrec.types import Sample

__all__ = ["TEMPLATES", "Prompt", "Template", "get_template"]


@dataclass(frozen=True)
class Template:
    """How a sample becomes text.

    Attributes:
        name: Its key in `TEMPLATES`.
        render: (sample, domain) -> Prompt.
        yes: The text of a like at an answer slot, with the space before it if there is one.
        no: The text of a dislike.
        chat: What a chat model is told before a text that does not say how to answer.
    """

    name: str
    render: Callable[[Sample, str], Prompt]
    yes: str
    no: str
    chat: str = ""


_COMPLETE = 'Complete the last line of this text with one word, "Yes" or "No".\n\n'

TEMPLATES = {
    template.name: template
    for template in (
        Template("timeline", render_timeline, " Yes", " No", chat=_COMPLETE),
        Template("paper", render_paper, "Yes.", "No."),
        Template("paper-clean", render_paper_clean, "Yes.", "No."),
    )
}


def get_template(name: str) -> Template:
    """Looks a template up by name.

    Raises:
        ValueError: If there is none of this name.
    """
    if name not in TEMPLATES:
        raise ValueError(f"no template {name!r}; choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
