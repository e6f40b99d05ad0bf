"""A finished run as the service uses it: questions in, log-odds out, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel

from tallrec.files import sha256
from tallrec.llm.merge import fold
from tallrec.llm.scoring import score_rows
from tallrec.prompts.answers import TokenRow
from tallrec.run import RunDir, open_run
from tallrec.steps.evaluate import read_report
from tallrec.steps.recommender import Recommender
from tallrec.types import FloatArray, Item, Sample

Events = Sequence[tuple[Item, bool]]
"""A history: (item, liked), oldest first; items need not be of the catalogue."""


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
    def load(cls, path: Path, *, seed: int | None = None) -> ServedModel:
        """Loads a finished run, by its first seed unless another is given.

        Raises:
            ValueError: If the run is unfinished or has no such seed.
        """
        recommender = _folded(Recommender.load(path, seed=seed, say=lambda _line: None))
        run = open_run(path)
        seed = run.recipe.seeds[0] if seed is None else seed
        return cls(path, recommender, _card(run, seed, recommender))

    @property
    def name(self) -> str:
        """The run's name and the beginning of its adapter's sha256."""
        return str(self.card["model"])

    @property
    def domain(self) -> str:
        """The noun for an item."""
        return self.recommender.scorer.domain

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

    def encode(self, samples: Sequence[Sample]) -> list[TokenRow]:
        """Tokenizes samples with as much of their history as the run's recipe shows.

        Raises:
            ValueError: If a title cannot be asked about.
        """
        return self.recommender.scorer.encode(
            replace(sample, history=sample.history[self.first_shown(len(sample.history)) :])
            for sample in samples
        )

    def first_shown(self, length: int) -> int:
        """The position of the oldest event that a history of some length shows."""
        start = max(0, length - self.recommender.longest)
        return start - start % self.recommender.block

    def score(self, rows: Sequence[TokenRow]) -> FloatArray:
        """Log-odds of a like for each row, shape [n]."""
        scorer = self.recommender.scorer
        return score_rows(
            scorer.model,
            rows,
            scorer.answers,
            ordering=scorer.ordering,
            batch_tokens=scorer.batch_tokens,
        )


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
    scorer = recommender.scorer
    if not isinstance(scorer.model, PeftModel):
        return recommender
    try:
        model = fold(scorer.model)
    except ValueError:  # of quantized weights, for example
        return recommender
    return replace(recommender, scorer=replace(scorer, model=model))


def _card(run: RunDir, seed: int, recommender: Recommender) -> dict[str, Any]:
    recipe, adapter = run.recipe, run.adapter(seed)
    digest = sha256(adapter / "adapter_model.safetensors")[:12] if adapter else "untuned"
    return {
        "model": f"{run.path.name}:{digest}",
        "backbone": recipe.backbone.source,
        "template": recipe.template,
        "shots": recipe.shots.count if recipe.shots_stage is not None else 0,
        "seed": seed,
        "domain": recommender.scorer.domain,
        "items": recommender.items.height,
        "measured": _measured(run),
    }


def _measured(run: RunDir) -> dict[str, Any] | None:
    """The test AUC of the run beside that of the best counting baseline; None without a report."""
    if not run.evaluated:
        return None
    report = read_report(run.path)
    auc = {system["name"]: system["metrics"]["auc"] for system in report["systems"]}
    model = auc[report["systems"][0]["name"]]
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
