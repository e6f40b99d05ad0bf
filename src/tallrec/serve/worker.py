"""One thread owns the model; requests that wait for it are scored together."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from tallrec.serve.model import Row, ServedModel
from tallrec.types import FloatArray, Sample

# Of a request's time: what may pass by estimate until it is scored. Requests differ, so estimates
# are wrong; were it all of the time, a full queue would score what nobody waits for any more.
_SHARE = 0.5


class Scored(NamedTuple):
    """Log-odds of a request's samples, shape [n], and the model that gave them."""

    model: ServedModel
    log_odds: FloatArray


class Batch(NamedTuple):
    """Facts about one call of the model."""

    requests: int
    rows: int
    tokens: int
    seconds: float
    failed: bool


class QueueFullError(Exception):
    """More requests wait than may, or than can be scored in time."""


class StoppedError(Exception):
    """The worker takes no requests any more."""


@dataclass
class _Job:
    samples: Sequence[Sample]
    future: Future[Scored] = field(default_factory=Future)
    model: ServedModel | None = None  # whose tokens the rows are
    rows: Sequence[Row] = ()
    tokens: int = 0


class Worker:
    """Scores requests in a thread of its own, in the order in which they come.

    Args:
        model: What scores.
        queue_size: How many requests may wait.
        seconds: How long a request may take; it is refused at once if those before it take longer.
        batch_tokens: Tokens scored together, shared ones counted once; a request that has more is
            scored alone.
        on_batch: Told about every call of the model, in the worker's thread.
    """

    def __init__(
        self,
        model: ServedModel,
        *,
        queue_size: int,
        seconds: float,
        batch_tokens: int,
        on_batch: Callable[[Batch], None],
    ) -> None:
        self.model = model
        self._jobs: queue.Queue[_Job | None] = queue.Queue(queue_size)
        self._seconds = seconds
        self._batch_tokens = batch_tokens
        self._on_batch = on_batch
        self._held: _Job | None = None  # taken, but too long for the batch before
        self._scoring = 0  # requests of the batch that the model works on
        self._pace = 0.0  # recent seconds a request
        self._closing = threading.Lock()  # nothing is accepted behind the end of the queue
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are accepted and worked on."""
        return self._thread.is_alive() and not self._closed

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._jobs.qsize()

    @property
    def retry_after(self) -> int:
        """Seconds after which those waiting now are probably done, at least 1."""
        return max(1, math.ceil(self._pace * self.waiting))

    def submit(self, samples: Sequence[Sample]) -> Future[Scored]:
        """Puts a request in the queue; cancelling its future takes it out again.

        Raises:
            QueueFullError: If as many wait as may, or the answer would come too late: work on it
                would only make the others late too.
            StoppedError: If the worker was stopped.
        """
        before = self.waiting + self._scoring
        if before and self._pace * (before + 1) > _SHARE * self._seconds:
            raise QueueFullError
        job = _Job(samples)
        with self._closing:
            if self._closed:
                raise StoppedError
            try:
                self._jobs.put_nowait(job)
            except queue.Full:
                raise QueueFullError from None
        return job.future

    def swap(self, model: ServedModel) -> None:
        """Scores everything by another model, from the next batch on."""
        self.model = model

    def stop(self) -> None:
        """Finishes what was accepted and ends the thread."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            model = self.model
            jobs, ended = self._gather(model)
            if jobs:
                self._score(model, jobs)
            if ended:
                return

    def _gather(self, model: ServedModel) -> tuple[list[_Job], bool]:
        """Waits for a job and takes those behind it that fit; True with the end of the queue."""
        jobs: list[_Job] = []
        tokens = 0
        while True:
            try:
                job = self._held or self._jobs.get(block=not jobs)
            except queue.Empty:
                return jobs, False
            if job is None:
                return jobs, True
            self._held = None
            if job.model is not model and not _encoded(job, model):
                continue
            if jobs and tokens + job.tokens > self._batch_tokens:
                self._held = job
                return jobs, False
            jobs.append(job)
            tokens += job.tokens

    def _score(self, model: ServedModel, jobs: list[_Job]) -> None:
        began = time.monotonic()
        self._scoring = len(jobs)
        failure: Exception | None = None
        try:
            scores = model.score([row for job in jobs for row in job.rows])
        except Exception as error:
            failure = error
        seconds = time.monotonic() - began
        self._scoring = 0
        pace = seconds / len(jobs)
        self._pace = 0.7 * self._pace + 0.3 * pace if self._pace else pace
        rows = sum(len(job.rows) for job in jobs)
        tokens = sum(job.tokens for job in jobs)
        self._on_batch(Batch(len(jobs), rows, tokens, seconds, failure is not None))
        start = 0
        for job in jobs:
            if failure is not None:
                job.future.set_exception(failure)
            else:
                stop = start + len(job.rows)
                job.future.set_result(Scored(model, scores[start:stop]))
                start = stop


def _encoded(job: _Job, model: ServedModel) -> bool:
    """Tokenizes a job, unless nobody waits for it any more or it cannot be done."""
    if job.model is None and not job.future.set_running_or_notify_cancel():
        return False
    try:
        job.model, job.rows = model, model.encode(job.samples)
    except Exception as error:
        job.future.set_exception(error)
        return False
    job.tokens = model.size(job.rows)
    return True
