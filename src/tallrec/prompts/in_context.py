"""Prompts for a model that is not tuned: a question, or worked examples before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tallrec.prompts import Prompt, Template
from tallrec.prompts.answers import join
from tallrec.types import Sample

_BETWEEN = "\n\n"


def with_examples(template: Template, examples: Sequence[Sample]) -> Template:
    """A template that shows answered samples before each question (few-shot prompting).

    Each example is rendered as a question of its own, with its answer (Brown et al., NeurIPS 2020,
    section 2). What is left is an ordinary template: a local backbone and an endpoint read the
    same text.

    Args:
        template: How a sample becomes text.
        examples: Labelled samples, in the order in which they are shown; none changes nothing.

    Raises:
        ValueError: If an example has no label.
    """
    if any(example.liked is None for example in examples):
        raise ValueError("a worked example needs its answer: give labelled samples")

    def render(sample: Sample, domain: str) -> Prompt:
        prompts = [template.render(shown, domain) for shown in (*examples, sample)]
        first, *others = prompts
        pieces = [*first.pieces]
        for prompt in others:
            pieces += [_BETWEEN + prompt.pieces[0], *prompt.pieces[1:]]
        return Prompt(tuple(pieces), tuple(like for prompt in prompts for like in prompt.likes))

    return replace(template, render=render)


def question(template: Template, sample: Sample, domain: str) -> str:
    """The text up to where the target's answer is to be written; no answer of its own is in it."""
    text, slots = join(template, template.render(sample, domain))
    return text[: slots[-1]]
