"""How long scoring takes and what it costs: a formula, and a simulation that checks it.

A worker computes the tokens of a user's history once and each candidate's own tokens once, and
spends some time on every row besides (tokenizing, tables). So for U users, C candidates each, h
tokens of history, c tokens of a candidate, and W workers:

    seconds = start + (U (h + C c) t + U C r) / W

where t and r are a worker's seconds for a token and for a row.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls


@dataclass(frozen=True)
class Work:
    """What is to be scored.

    Attributes:
        users: How many.
        candidates: Of each user.
        history_tokens: Tokens that all candidates of a user share.
        candidate_tokens: Tokens of one candidate's own.
    """

    users: float
    candidates: float
    history_tokens: float
    candidate_tokens: float

    @property
    def rows(self) -> float:
        """Scores that are wanted."""
        return self.users * self.candidates

    @property
    def tokens(self) -> float:
        """Tokens that go through the model."""
        return self.users * (self.history_tokens + self.candidates * self.candidate_tokens)


@dataclass(frozen=True)
class Speed:
    """What one worker needs, in seconds.

    Attributes:
        start: To start and load the model.
        token: For a token.
        row: For a row besides its tokens.
    """

    start: float
    token: float
    row: float

    def busy(self, work: Work) -> float:
        """Seconds of one worker, the start left out."""
        return work.tokens * self.token + work.rows * self.row


def seconds_of(work: Work, speed: Speed, workers: int) -> float:
    """How long workers take, if all are busy to the end."""
    return speed.start + speed.busy(work) / workers


def fit_speed(
    tokens: Sequence[float], rows: Sequence[float], seconds: Sequence[float], start: float
) -> Speed:
    """A worker's seconds for a token and a row, from measured buckets (least squares, none < 0).

    Args:
        tokens: Tokens that went through the model for each bucket, what is shared once.
        rows: Scores of each bucket.
        seconds: What each took a worker that was loaded.
        start: What starting and loading took.
    """
    costs, _ = nnls(np.column_stack([tokens, rows]).astype(float), np.array(seconds, float))
    return Speed(start, *map(float, costs))


def simulate(
    work: Work,
    speed: Speed,
    workers: int,
    *,
    buckets: int,
    mean_life: float | None = None,
    seed: int = 0,
) -> float:
    """How long a job takes, played through: buckets of unlike sizes, and workers that die.

    Args:
        work: What is to be scored; users fall into buckets at random.
        speed: Of one worker.
        workers: How many work at once.
        buckets: How many there are; the next free worker takes the next one.
        mean_life: Seconds that a worker lives on average (exponential); a bucket it dies in is
            begun again by one that has to start first. None if none dies.
        seed: Seeds sizes and lives.

    Returns:
        Seconds until the last bucket is written.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.poisson(work.users / buckets, buckets)
    durations = sizes / sizes.sum() * speed.busy(work)

    def lives() -> float:
        return math.inf if mean_life is None else float(rng.exponential(mean_life))

    free = [(speed.start, speed.start + lives()) for _ in range(workers)]
    heapq.heapify(free)
    finished = 0.0
    for duration in durations:
        at, dies = heapq.heappop(free)
        while at + duration > dies:
            at = dies + speed.start
            dies = at + lives()
        heapq.heappush(free, (at + duration, dies))
        finished = max(finished, at + duration)
    return float(finished)
