"""A finished run as the service uses it: questions in, log-odds out, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel

from tallrec.data.histories import samples_of_questions
from tallrec.files import sha256
from tallrec.gaussian import GaussianProcess
from tallrec.llm.merge import fold
from tallrec.prompts.answers import TokenRow
from tallrec.run import RunDir, open_run
from tallrec.steps.evaluate import read_report
from tallrec.steps.gaussian import process_file, process_name
from tallrec.steps.recommender import Recommender
from tallrec.types import FloatArray, Item, Sample

Events = Sequence[tuple[Item, bool]]
"""A history: (item, liked), oldest first; items need not be of the catalogue."""


Row = TokenRow | Sample
"""A question as the model scores it."""


@dataclass(frozen=True)
class ServedModel:
    """One seed of a run. Only one thread may encode and score.

    Attributes:
        path: The run directory.
        recommender: The loaded seed.
        card: What the model is and what was measured, ready for JSON.
    """

    path: Path
    recommender: Recommender
    card: dict[str, Any]

    @classmethod
    def load(cls, path: Path, *, seed: int | None = None, by: str | None = None) -> ServedModel:
        """Loads a finished run, by its first seed unless another is given.

        Args:
            path: The run directory.
            seed: Which of its seeds.
            by: What scores; see `Recommender.load`.

        Raises:
            ValueError: If the run is unfinished or has no such seed or process.
        """
        recommender = Recommender.load(path, seed=seed, by=by, say=lambda _line: None)
        run = open_run(path)
        seed = run.recipe.seeds[0] if seed is None else seed
        card = _card(run, seed, recommender)
        if isinstance(recommender.scorer, GaussianProcess):
            return ServedProcess(path, recommender, card)
        return cls(path, _folded(recommender), card)

    @property
    def name(self) -> str:
        """The run's name and the beginning of its adapter's sha256."""
        return str(self.card["model"])

    @property
    def domain(self) -> str:
        """The noun for an item."""
        return self.recommender.domain

    @cached_property
    def items(self) -> dict[str, Item]:
        """The catalogue by item id."""
        rows = self.recommender.items.select("item", "title", "creator").iter_rows()
        return {row[0]: Item(*row) for row in rows}

    @cached_property
    def by_popularity(self) -> list[Item]:
        """The catalogue, the items with most interactions in the run's data first."""
        order = np.argsort(-self.recommender.titles.popularity, kind="stable")
        items = list(self.items.values())
        return [items[i] for i in order]

    def encode(self, samples: Sequence[Sample]) -> Sequence[Row]:
        """Makes rows of samples, with as much of their history as the run's recipe shows.

        Raises:
            ValueError: If a title cannot be asked about.
        """
        return self.recommender.llm.encode(
            replace(sample, history=sample.history[self.first_shown(len(sample.history)) :])
            for sample in samples
        )

    def size(self, rows: Sequence[Row]) -> int:
        """Tokens of the rows of a request, those that all begin with counted once."""
        ids = [row.prompt for row in rows if isinstance(row, TokenRow)]
        pairs = zip(min(ids), max(ids), strict=False)  # what these share, all between them share
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return shared + sum(len(row) - shared for row in ids)

    def first_shown(self, length: int) -> int:
        """The position of the oldest event that a history of some length shows."""
        start = max(0, length - self.recommender.longest)
        return start - start % self.recommender.block

    def score(self, rows: Sequence[Row]) -> FloatArray:
        """Log-odds of a like for each row, shape [n]."""
        return self.recommender.llm.score([row for row in rows if isinstance(row, TokenRow)])


@dataclass(frozen=True)
class ServedProcess(ServedModel):
    """The Gaussian process of one seed."""

    def encode(self, samples: Sequence[Sample]) -> Sequence[Row]:
        """Leaves samples as they are."""
        return samples

    def size(self, rows: Sequence[Row]) -> int:
        """One for each row: nothing of it is tokenized."""
        return len(rows)

    def score(self, rows: Sequence[Row]) -> FloatArray:
        """Log-odds of a like for each row, shape [n]."""
        asked = [row for row in rows if isinstance(row, Sample)]
        longest = self.recommender.longest
        samples = samples_of_questions(self.recommender.items, asked, longest=longest)
        return self.recommender.scorer(samples)


def questions(history: Events, targets: Sequence[Item]) -> list[Sample]:
    """One sample for each target, all with the same history."""
    shown = tuple(history)
    return [Sample("", shown, target) for target in targets]


def left_out(history: Events, target: Item) -> list[Sample]:
    """The question about a target with its whole history, and once without each event."""
    shown = tuple(history)
    shorter = [shown[:i] + shown[i + 1 :] for i in range(len(shown))]
    return [Sample("", events, target) for events in (shown, *shorter)]


def _folded(recommender: Recommender) -> Recommender:
    """The same with its adapter folded into the weights now, not for every batch, if it can be."""
    scorer = recommender.llm
    if not isinstance(scorer.model, PeftModel):
        return recommender
    try:
        model = fold(scorer.model)
    except ValueError:  # of quantized weights, for example
        return recommender
    return replace(recommender, scorer=replace(scorer, model=model))


def _card(run: RunDir, seed: int, recommender: Recommender) -> dict[str, Any]:
    recipe, adapter = run.recipe, run.adapter(seed)
    process = isinstance(recommender.scorer, GaussianProcess)
    weights = adapter and adapter / "adapter_model.safetensors"
    file = process_file(run, seed) if process else weights
    return {
        "model": f"{run.path.name}:{sha256(file)[:12] if file else 'untuned'}",
        "by": "gaussian-process" if process else "model",
        "backbone": recipe.backbone.source,
        "template": None if process else recipe.template,
        "shots": recipe.shots.count if process or recipe.shots_stage is not None else 0,
        "seed": seed,
        "domain": recommender.domain,
        "items": recommender.items.height,
        "measured": _measured(run, process_name(run) if process else None),
    }


def _measured(run: RunDir, name: str | None) -> dict[str, Any] | None:
    """The test AUC of a row of the run's report, its first unless one is named.

    It stands beside that of the best counting baseline; None if there is no such row.
    """
    if not run.evaluated:
        return None
    report = read_report(run.path)
    auc = {system["name"]: system["metrics"]["auc"] for system in report["systems"]}
    model = auc.get(name or report["systems"][0]["name"])
    if model is None:
        return None
    best = report["best_counting"].get("auc")
    return {
        "auc": model["mean"],
        "low": model["low"],
        "high": model["high"],
        "seeds": len(run.recipe.seeds),
        "rows": report["data"]["rows"],
        "users": report["data"]["users"],
        "best_counting": best and {"name": best, "auc": auc[best]["mean"]},
    }
