"""In-context learning beside counting: an untuned model, asked with and without examples."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tallrec.baselines.endpoint import Client, Endpoint
from tallrec.baselines.in_context import InContextScorer, count_answers
from tallrec.baselines.journal import Journal
from tallrec.baselines.replies import interpret
from tallrec.data.prepared import Prepared, read_prepared
from tallrec.data.shots import draw_shots
from tallrec.evaluate import AnswerCounts, Evaluation, Result, System, summarize, write_report
from tallrec.evaluate.bootstrap import N_RESAMPLES
from tallrec.evaluate.plots import figures
from tallrec.files import locked_folder
from tallrec.llm.backbone import Backbone, load_backbone
from tallrec.llm.scoring import LlmScorer
from tallrec.progress import shown
from tallrec.prompts import Template, get_template
from tallrec.prompts.answers import resolve_answers
from tallrec.prompts.in_context import with_examples
from tallrec.steps.baselines import counting_systems
from tallrec.steps.data import Say, backbone_source
from tallrec.steps.evaluate import questions_hash, read_report
from tallrec.steps.score import kept, part_of
from tallrec.types import FloatArray, Samples

IN_CONTEXT = "in-context"


def in_context(
    data: Path,
    out: Path,
    model: Endpoint | str,
    *,
    template: str = "paper",
    shots: Sequence[int] = (0, 4),
    seeds: Sequence[int] = (0,),
    part: str = "test",
    rows: int | None = None,
    resamples: int = N_RESAMPLES,
    say: Say = print,
) -> Result:
    """Asks a model about a part of a prepared folder and reports it beside counting.

    `out` keeps every answer: called again, with more rows, shots or seeds if you like, nothing is
    asked or computed twice.

    Args:
        data: The prepared folder; shots are drawn from its training part.
        out: Where answers and the report go.
        model: An endpoint to ask, or the source of a local backbone (see `load_backbone`).
        template: A key of `TEMPLATES`.
        shots: Numbers of worked examples before the question, each a system of its own.
        seeds: Seeds of the draws of examples. Without examples there is nothing to draw.
        part: `train`, `valid` or `test`.
        rows: How many rows of the part to ask about, drawn at random; more of them include fewer.
        resamples: Bootstrap resamples of the users.
        say: Shows a line to the user.

    Raises:
        ValueError: If an option is not right, `out` belongs to something else, the model cannot be
            asked to the end, or its context is too short for so many examples.
    """
    prepared = read_prepared(data)
    samples = _drawn(part_of(prepared, part), rows)
    questions = _Questions(samples, get_template(template), prepared.info.domain)
    _check(shots, seeds, part)
    metadata = _metadata(prepared, model, template, part)
    _check_same(out, metadata)
    metadata |= {
        "rows": len(samples),
        "shots": list(shots),
        "seeds": list(seeds),
        "test_hash": questions_hash(samples),
        "tallrec": version("tallrec"),
    }
    out.mkdir(parents=True, exist_ok=True)
    with locked_folder(out):
        ask = _by_endpoint(model, out) if isinstance(model, Endpoint) else _locally(model, out, say)
        examples = {k: _examples(prepared.splits.train, k, seeds) for k in dict.fromkeys(shots)}
        evaluation = Evaluation(
            labels=samples.labels,
            users=samples.users,
            systems=(
                *(ask(questions, k, by_seed) for k, by_seed in examples.items()),
                *counting_systems(list(examples[max(shots)].values()), samples),
            ),
            metadata=metadata,
        )
        result = summarize(evaluation, resamples=resamples)
        write_report(out, result, figures(evaluation))
    return result


@dataclass(frozen=True)
class _Questions:
    """What is asked: the samples, and how they become text."""

    samples: Samples
    template: Template
    domain: str

    def after(self, examples: Samples) -> Template:
        return with_examples(self.template, list(examples))

    def title(self, model: str, shots: int) -> str:
        return f"{model}, {self.template.name}, {_words(shots)}"


Ask = Callable[[_Questions, int, Mapping[int, Samples]], System]
"""(questions, number of shots, examples by seed) to a row of the report."""


def _by_endpoint(endpoint: Endpoint, out: Path) -> Ask:
    client, journal = Client(endpoint), Journal(out / "answers.jsonl")

    def ask(questions: _Questions, shots: int, examples: Mapping[int, Samples]) -> System:
        replies = []
        for seed, drawn in examples.items():
            with shown(f"Asking, {_words(shots)}, seed {seed}") as on_progress:
                scorer = InContextScorer(
                    client, journal, questions.after(drawn), questions.domain, on_progress
                )
                replies.append(scorer.replies(questions.samples))
        scores = np.array([[interpret(reply).log_odds for reply in row] for row in replies])
        counts = count_answers(endpoint, list(chain.from_iterable(replies)))
        return System(questions.title(endpoint.model, shots), IN_CONTEXT, scores, counts)

    return ask


def _locally(source: str, out: Path, say: Say) -> Ask:
    @cache
    def load() -> Backbone:
        say(f"Loading {source}")
        return load_backbone(backbone_source(source, say=say), name=source)

    def ask(questions: _Questions, shots: int, examples: Mapping[int, Samples]) -> System:
        def score(seed: int) -> FloatArray:
            return _score_locally(
                load(), questions, examples[seed], f"{_words(shots)}, seed {seed}"
            )

        files = {seed: out / f"{shots}-shots-seed-{seed}.parquet" for seed in examples}
        scores = np.array(
            [kept(file, questions.samples, partial(score, seed)) for seed, file in files.items()]
        )
        return System(questions.title(source, shots), IN_CONTEXT, scores, _read_off(scores.size))

    return ask


def _score_locally(
    backbone: Backbone, questions: _Questions, examples: Samples, title: str
) -> FloatArray:
    """Log-odds by a backbone as it is, shape [n].

    Raises:
        ValueError: If examples leave a question no room for its history.
    """
    template = questions.after(examples)
    with shown(f"Scoring, {title}") as on_progress:
        scorer = LlmScorer(
            model=backbone.model,
            tokenizer=backbone.tokenizer,
            template=template,
            answers=resolve_answers(backbone.tokenizer, template, questions.domain),
            domain=questions.domain,
            max_tokens=backbone.max_positions,
            on_progress=on_progress,
        )
        if len(examples):
            whole = replace(scorer, max_tokens=sys.maxsize).encode(questions.samples)
            longest = max(len(row.ids) for row in whole)
            if longest > scorer.max_tokens:
                raise ValueError(
                    f"a question has up to {longest} tokens after its {len(examples)} examples, "
                    f"but {backbone.name} takes {scorer.max_tokens}: give fewer --shots"
                )
        return scorer(questions.samples)


def _read_off(count: int) -> AnswerCounts:
    """A local backbone writes nothing: every score is read from its probabilities."""
    return {
        "asked": count,
        "said_yes": None,
        "said_no": None,
        "refused": None,
        "unparseable": None,
        "by_log_probability": count,
        "by_text": 0,
        "bounded": 0,
        "prompt_tokens": None,
        "completion_tokens": None,
        "cost": None,
        "retries": 0,
    }


def _examples(train: Samples, shots: int, seeds: Sequence[int]) -> dict[int, Samples]:
    """Examples by seed, oldest first; without any, seeds do not differ and one is left."""
    if not shots:
        return {seeds[0]: train[:0]}
    drawn = {seed: draw_shots(train, shots, seed=seed) for seed in seeds}
    return {
        seed: examples[np.argsort(examples.rows["timestamp"].fill_null(0), kind="stable")]
        for seed, examples in drawn.items()
    }


def _drawn(samples: Samples, rows: int | None) -> Samples:
    """So many rows at random, in their order; always the same, and more of them include fewer."""
    if rows is None:
        return samples
    if not 1 <= rows <= len(samples):
        raise ValueError(f"rows must be between 1 and the part's {len(samples)}; got {rows}")
    return samples[np.sort(np.random.default_rng(0).permutation(len(samples))[:rows])]


def _check(shots: Sequence[int], seeds: Sequence[int], part: str) -> None:
    if not shots or min(shots) < 0:
        raise ValueError(f"shots must be numbers such as 0,4; got {list(shots)}")
    if not seeds:
        raise ValueError("give at least one seed")
    if part == "train" and max(shots):
        raise ValueError("examples come from the train part: ask about another, or give --shots 0")


def _metadata(
    prepared: Prepared, model: Endpoint | str, template: str, part: str
) -> dict[str, Any]:
    """What must be the same for everything in one folder."""
    hashes = json.dumps(prepared.hashes, sort_keys=True)
    return {
        "dataset": prepared.info.dataset,
        "split": prepared.info.split,
        "part": part,
        "data_hash": hashlib.sha256(hashes.encode()).hexdigest(),
        "model": model.model if isinstance(model, Endpoint) else model,
        "endpoint": f"{model.base_url} ({model.api})" if isinstance(model, Endpoint) else "local",
        "template": template,
    }


def _check_same(out: Path, metadata: Mapping[str, Any]) -> None:
    """A folder is about one model and one data set; what it holds is not overwritten silently."""
    if not (out / "report.json").exists():
        return
    known = read_report(out)["metadata"]
    for name, value in metadata.items():
        if known.get(name) != value:
            raise ValueError(
                f"{out} holds a report on another {name} ({known.get(name)} instead of {value}): "
                f"give another --out"
            )


def _words(shots: int) -> str:
    return f"{shots} shots" if shots else "zero-shot"
