"""A scorer in one line, and an easier planted taste."""

from dataclasses import replace

import polars as pl

from tallrec.llm.adapter import AdapterCard
from tallrec.llm.scoring import LlmScorer
from tallrec.prompts import get_template
from tallrec.prompts.answers import resolve_answers
from tallrec.types import Samples, Splits
from tests.planted import planted_splits


def scorer_for(backbone, model=None, template="timeline", **options) -> LlmScorer:
    """The backbone, or a model on it, as a scorer of movies."""
    template = get_template(template)
    return LlmScorer(
        model=model or backbone.model,
        tokenizer=backbone.tokenizer,
        template=template,
        answers=resolve_answers(backbone.tokenizer, template, "movie"),
        domain="movie",
        **{"max_tokens": 512, **options},
    )


def card_of(backbone) -> AdapterCard:
    """The card of an adapter on the backbone, for the timeline template."""
    answers = scorer_for(backbone).answers
    return AdapterCard(
        backbone=backbone.name,
        fingerprint=backbone.fingerprint,
        template="timeline",
        domain="movie",
        yes=" Yes",
        no=" No",
        yes_id=answers.yes,
        no_id=answers.no,
        max_tokens=512,
    )


def generous_splits() -> Splits:
    """The planted data, but every second user likes everything and the others nothing.

    The checkerboard itself is out of reach of two random layers; this still has to be read from
    the user's own history, and users of the test part are new.
    """
    return Splits(*(generous(part) for part in planted_splits().parts().values()))


def generous(samples: Samples) -> Samples:
    def relabel(table: pl.DataFrame) -> pl.DataFrame:
        return table.with_columns(liked=table["user"].to_physical() % 2 == 0)

    return replace(samples, events=relabel(samples.events), rows=relabel(samples.rows))
