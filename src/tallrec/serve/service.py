"""The parts of a running service, and what its routes ask of them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from fastapi import HTTPException

from tallrec.serve.limits import Limits
from tallrec.serve.model import Events, ServedModel
from tallrec.serve.schemas import Event, ScoredItem
from tallrec.serve.watch import Metrics, told
from tallrec.serve.worker import QueueFullError, Scored, StoppedError, Worker
from tallrec.types import FloatArray, Item, Sample

if TYPE_CHECKING:
    from tallrec.serve.feedback import FeedbackStore


@dataclass(frozen=True)
class Settings:
    """What a service is told when it starts.

    Attributes:
        limits: What one request may cost.
        token: The bearer token that clients need, or None.
        hosts: Host names that requests may name; any with a token.
        origins: Web pages of other origins that may ask; none unless given.
        by: What scores, also after a reload; see `Recommender.load`.
    """

    limits: Limits = field(default_factory=Limits)
    token: str | None = None
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost")
    origins: tuple[str, ...] = ()
    by: str | None = None


class Service:
    """A worker with its model, and the feedback store.

    Args:
        model: What scores first.
        store: Keeps feedback; knows the items of every model served.
        settings: Limits and access.
    """

    def __init__(self, model: ServedModel, store: FeedbackStore, settings: Settings) -> None:
        self.store, self.settings = store, settings
        store.keep_items(model.items.values(), model.domain)
        self.metrics = Metrics(lambda: self.worker.waiting)
        self.worker = Worker(
            model,
            queue_size=settings.limits.queue,
            seconds=settings.limits.seconds,
            batch_tokens=settings.limits.batch_tokens,
            on_batch=self.metrics.on_batch,
        )
        self._reloading = threading.Lock()

    @property
    def model(self) -> ServedModel:
        """The model that scores now."""
        return self.worker.model

    def close(self) -> None:
        """Finishes what was accepted and lets go of everything."""
        self.worker.stop()
        self.store.close()

    def reload(self, run: str | None) -> str:
        """Loads a run beside the present one and serves it from the next batch on.

        Raises:
            HTTPException: 409 while another is loaded, 422 if the run cannot be served; the
                present one then stays.
        """
        if not self._reloading.acquire(blocking=False):
            raise HTTPException(409, "another reload is going on")
        try:
            path = Path(run) if run is not None else self.model.path
            model = ServedModel.load(path, by=self.settings.by)
            self.store.keep_items(model.items.values(), model.domain)
        except (ValueError, OSError) as error:
            raise HTTPException(422, str(error)) from None
        finally:
            self._reloading.release()
        self.worker.swap(model)
        told(logging.INFO, "reloaded", model=model.name)
        return model.name

    async def scored(self, samples: Sequence[Sample]) -> Scored:
        """The scores of a request, with those of others that wait.

        Raises:
            HTTPException: 429 if too many wait, 503 if time is up or the service stops, 422 if
                a title cannot be asked about.
        """
        try:
            future = self.worker.submit(samples)
        except QueueFullError:
            raise self._later(429, "too many requests wait") from None
        except StoppedError:
            raise self._later(503, "the service stops") from None
        try:
            async with asyncio.timeout(self.settings.limits.seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise self._later(503, "time is up") from None
        except ValueError as error:
            raise HTTPException(422, str(error)) from None

    def _later(self, status: int, detail: str) -> HTTPException:
        return HTTPException(status, detail, {"Retry-After": str(self.worker.retry_after)})

    def item(self, item: str) -> Item:
        """An item of the catalogue.

        Raises:
            HTTPException: 422 if there is none of this id.
        """
        found = self.model.items.get(item)
        if found is None:
            raise HTTPException(422, f"there is no item {item!r} in the catalogue")
        return found

    def history(self, events: Sequence[Event]) -> Events:
        """A history with its items looked up.

        Raises:
            HTTPException: 422 if it is too long, a title is, or an item is unknown.
        """
        limits = self.settings.limits
        if len(events) > limits.items:
            raise HTTPException(422, f"a history may have {limits.items} events")
        if any(event.title and len(event.title) > limits.title for event in events):
            raise HTTPException(422, f"a title may have {limits.title} characters")
        return [
            (Item("", event.title) if event.title else self.item(str(event.item)), event.liked)
            for event in events
        ]

    def candidates(self, ids: Sequence[str]) -> list[Item]:
        """Items to score, looked up.

        Raises:
            HTTPException: 422 if they are too many or one is unknown.
        """
        most = self.settings.limits.items
        if len(ids) > most:
            raise HTTPException(422, f"{most} candidates may be scored at once")
        return [self.item(item) for item in ids]


def with_scores(items: Sequence[Item], log_odds: FloatArray) -> list[ScoredItem]:
    """Items beside their scores, log-odds of the shape [n]."""
    probabilities = 1 / (1 + np.exp(-log_odds))
    return [
        ScoredItem(**item._asdict() | {"item": item.id}, log_odds=score, probability=p)
        for item, score, p in zip(items, log_odds.tolist(), probabilities.tolist(), strict=True)
    ]
