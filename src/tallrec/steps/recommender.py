"""A finished run as a recommender: titles in, ranked titles out, with what moved them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from peft import PeftModel

from tallrec.data.histories import History, check_items, history_of, samples_of_histories
from tallrec.data.prepared import read_prepared
from tallrec.data.samples import in_blocks
from tallrec.data.titles import Match, TitleIndex
from tallrec.gaussian import GaussianProcess
from tallrec.llm.backbone import Backbone
from tallrec.llm.scoring import LlmScorer
from tallrec.progress import OnProgress
from tallrec.recommend import best_items, influences
from tallrec.steps.asked import Asked
from tallrec.steps.data import Say
from tallrec.steps.gaussian import processes_of
from tallrec.steps.score import finished_run, seed_scorer
from tallrec.steps.tune import load
from tallrec.types import FloatArray, Item, Samples


@dataclass(frozen=True)
class Recommender:
    """One seed of a finished run, loaded to score, rank and explain.

    A history is any sequence of (item id, liked), oldest first. Like a model, a recommender is not
    to be used by two threads at once.

    Attributes:
        scorer: The tuned model, or the run's Gaussian process.
        samples: The events of the run's data, and its catalogue.
        domain: The noun for an item.
        longest: How many of the latest events of a history the scorer sees at least.
        block: How many events the beginning of what it sees moves at once; see `in_blocks`.
    """

    scorer: LlmScorer | GaussianProcess
    samples: Samples
    domain: str
    longest: int
    block: int

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        seed: int | None = None,
        data: Path | None = None,
        by: str | None = None,
        backbone: Backbone | None = None,
        say: Say = print,
    ) -> Recommender:
        """Loads a finished run.

        Args:
            run: The run directory.
            seed: Which of its seeds; the first unless given.
            data: A prepared folder, whose catalogue and users count instead of the run's own.
            by: What scores, one of `BY`; unless given, the Gaussian process if the run's recipe has
                one.
            backbone: The run's backbone, if it is loaded already; `close` gives it back bare.
            say: Shows a line to the user.

        Raises:
            ValueError: If the run is unfinished, has no such seed or no process, or the folder is
                not right.
        """
        opened = finished_run(Path(run))
        seeds = opened.recipe.seeds
        if seed is not None and seed not in seeds:
            raise ValueError(f"{run} has the seeds {', '.join(map(str, seeds))}; got {seed}")
        seed = seeds[0] if seed is None else seed
        own = read_prepared(Path(opened.info["data"]["folder"]))
        prepared = read_prepared(data) if data else own
        domain, asked = prepared.info.domain, Asked.of(opened, prepared, by)
        scorer: GaussianProcess | LlmScorer
        if asked.by == "model":
            scorer = seed_scorer(opened, backbone or load(opened.recipe, say=say), seed, domain)
        else:
            scorer = processes_of(opened, own, domain=domain, backbone=backbone, say=say)(seed)
        return cls(scorer, prepared.splits.train, domain, asked.longest, asked.block)

    @property
    def llm(self) -> LlmScorer:
        """The tuned model, of a recommender that was loaded `by="model"`."""
        assert isinstance(self.scorer, LlmScorer)
        return self.scorer

    @property
    def items(self) -> pl.DataFrame:
        """The catalogue: `item`, `title`, `creator` (null where unknown)."""
        return self.samples.catalog

    @cached_property
    def titles(self) -> TitleIndex:
        """The catalogue's titles, to be searched."""
        met = np.bincount(self.samples.event_items, minlength=self.items.height)
        return TitleIndex(self.items, met.astype(np.float64))

    def find(self, query: str, limit: int = 5) -> list[Match]:
        """The items whose titles are nearest to a query, nearest first; see `TitleIndex`."""
        return self.titles.find(query, limit)

    def match(self, title: str) -> Item:
        """The item that a title means.

        Raises:
            ValueError: If no title is near enough; the nearest are named.
        """
        return self.titles.match(title)

    def history_of(self, user: str) -> list[tuple[str, bool]]:
        """The history of a user of the data.

        Raises:
            ValueError: If there is no such user.
        """
        return history_of(self.samples, user)

    def score(self, history: History, candidates: Sequence[str]) -> FloatArray:
        """Log-odds of a like for each candidate, shape [n].

        Args:
            history: (item id, liked) pairs, oldest first; may be empty.
            candidates: Item ids.

        Raises:
            ValueError: If an id is not in the catalogue, or a candidate is in the history.
        """
        return self.scorer(self._questions(history, candidates))

    def rank(
        self, history: History, candidates: Sequence[str] | None = None, k: int = 10
    ) -> pl.DataFrame:
        """The best items that are not in the history.

        Args:
            history: (item id, liked) pairs, oldest first; may be empty.
            candidates: Ids of the items to choose from; the whole catalogue unless given.
            k: How many items to return.

        Returns:
            At most `k` rows, best first: `item`, `title`, `log_odds` and `probability` (of a like).

        Raises:
            ValueError: If an id is not in the catalogue, or nothing is left to rank.
        """
        candidates = self.items["item"].to_list() if candidates is None else list(candidates)
        met = {item for item, _ in history}
        left = [item for item in dict.fromkeys(candidates) if item not in met]
        if not left:
            raise ValueError(
                f"all {len(candidates):,} candidates are in the history: nothing is left to rank"
            )
        return best_items(self.scorer, self._questions(history, left), k=k)

    def explain(self, history: History, *items: str) -> pl.DataFrame:
        """What in a history moved the scores of items: each of its items is left out once.

        Args:
            history: (item id, liked) pairs, oldest first.
            items: Ids of the items to explain; several at once are cheaper.

        Returns:
            `target`, `item`, `title`, `liked`, `effect` (of showing that item on the target's
            log-odds), the strongest effect of each target first. Only what the scorer sees of the
            history is there.

        Raises:
            ValueError: If no item is given, or one is not in the catalogue or is in the history.
        """
        if not items:
            raise ValueError("give at least one item to explain")
        start, stop = self._questions(history, items).spans[0]
        return influences(self.scorer, self.items, history[start:stop], items)

    def showing(self, on_progress: OnProgress) -> Recommender:
        """The same, with a function that is told how far a ranking is."""
        if not isinstance(self.scorer, LlmScorer):
            return self  # it is ready before anyone could look
        return replace(self, scorer=replace(self.scorer, on_progress=on_progress))

    def close(self) -> None:
        """Takes the adapter off the backbone, which can then be used for another."""
        if isinstance(self.scorer, LlmScorer) and isinstance(self.scorer.model, PeftModel):
            self.scorer.model.unload()

    def _questions(self, history: History, items: Sequence[str]) -> Samples:
        """One sample for each item, with as much of the history as the run's recipe shows."""
        check_items(self.items, items)
        if known := {item for item, _ in history}.intersection(items):
            raise ValueError(f"item {min(known)!r} is in the history: its answer is known")
        questions = samples_of_histories(self.items, [history], items, longest=self.longest)
        return in_blocks(questions, self.block)


def recommend_run(
    path: Path,
    user: str,
    *,
    k: int = 10,
    data: Path | None = None,
    backbone: Backbone | None = None,
    say: Say = print,
) -> pl.DataFrame:
    """The best unseen items for a user by a run's first seed; see `Recommender`.

    The user is one of the run's own data or, where `data` is given, of that prepared folder.

    Raises:
        ValueError: If the run is unfinished, the user unknown, or has met every item.
    """
    recommender = Recommender.load(path, data=data, backbone=backbone, say=say)
    with closing(recommender):
        return recommender.rank(recommender.history_of(user), k=k)
