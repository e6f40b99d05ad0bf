"""What an evaluation is made of, and the schema of its result (`report.json`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

import numpy as np

from tallrec.types import BoolArray, FloatArray, IntArray

MODEL = "model"
COUNTING = "counting"


class AnswerCounts(TypedDict):
    """How a system that is asked in words answered, all its seeds together.

    None stands for what is not known, such as the tokens where an endpoint does not count them.
    `said_yes`, `said_no`, `refused` and `unparseable` say what the answers' texts are, the `by_`
    counts where scores come from. `bounded` counts scores for which one of the two answers was not
    among the log-probabilities given. `retries` counts questions asked again after an error.
    """

    asked: int
    said_yes: int | None
    said_no: int | None
    refused: int | None
    unparseable: int | None
    by_log_probability: int
    by_text: int
    bounded: int
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: float | None
    retries: int


class AnswerResult(AnswerCounts):
    """The counts, with what follows from the scores.

    `yes_share` is the share of scored samples with log-odds above 0, `tied_pairs` that of pairs of
    a like and a dislike with equal scores, which AUC counts half, `auc_all` the AUC if a sample
    without a score were ranked by a coin.
    """

    yes_share: float | None
    tied_pairs: float | None
    auc_all: float | None


@dataclass(frozen=True)
class System:
    """One row of the table: something that scored the test samples.

    Attributes:
        name: What the reports call it.
        kind: `model`, `counting`, or another word; whatever does not count is compared to counting.
        scores: Log-odds, one row a seed, shape [n_seeds, n]; NaN where it could not score.
        answers: How it answered, if it was asked in words.
    """

    name: str
    kind: str
    scores: FloatArray
    answers: AnswerCounts | None = None


@dataclass(frozen=True)
class Evaluation:
    """Everything that a report is computed from.

    Attributes:
        labels: True where the user liked the target, shape [n].
        users: Equal codes mean the same user, shape [n].
        systems: What scored these samples, in the order of the table.
        metadata: JSON-able facts that travel with the result. `test_hash` identifies the test
            samples and lets runs be compared; `shots` places a run in the plot over shots.

    Raises:
        ValueError: If there are no samples, shapes disagree, a name is taken twice, or a score is
            infinite.
    """

    labels: BoolArray
    users: IntArray
    systems: tuple[System, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.labels)
        if not n:
            raise ValueError("there are no test samples to evaluate")
        if self.users.shape != (n,):
            raise ValueError(f"{n} labels need {n} user codes, not {self.users.shape}")
        names = [system.name for system in self.systems]
        for system in self.systems:
            if names.count(system.name) > 1:
                raise ValueError(f"two systems are named {system.name!r}; give each its own name")
            if system.scores.ndim != 2 or system.scores.shape[1] != n or not len(system.scores):
                raise ValueError(
                    f"scores of {system.name!r} must have the shape (seeds, {n}), "
                    f"not {system.scores.shape}"
                )
            if np.isinf(system.scores).any():
                raise ValueError(
                    f"{system.name!r} gave infinite scores; finite log-odds, or NaN for a sample "
                    "that it cannot score, are right"
                )


class MetricResult(TypedDict):
    """A metric of one system: mean over its seeds, interval of that mean, spread over seeds.

    None stands for undefined. `sd` is the sample standard deviation over seeds, None for one seed;
    `dropped` counts the resamples in which the metric was undefined.
    """

    mean: float | None
    low: float | None
    high: float | None
    sd: float | None
    per_seed: list[float | None]
    dropped: int


class SystemResult(TypedDict):
    """A system's metrics by name; `unscored` counts each seed's samples without a score.

    `answers` is there if the system was asked in words.
    """

    name: str
    kind: str
    unscored: list[int]
    metrics: dict[str, MetricResult]
    answers: NotRequired[AnswerResult]


class Difference(TypedDict):
    """A system less the best counting baseline, paired: same samples, same resamples.

    `rows` counts the samples that both scored, which alone are compared. `share_not_positive` is
    the share of resamples with a difference <= 0, `p` the two-sided p-value of "no difference".
    `verdict` is `better`, `worse`, `not distinguishable` or `undefined`.
    """

    system: str
    baseline: str
    metric: str
    rows: int
    difference: float | None
    low: float | None
    high: float | None
    share_not_positive: float | None
    p: float | None
    verdict: str


class Data(TypedDict):
    """The test samples: how many, of how many users, and how many of them were liked."""

    rows: int
    users: int
    users_with_both: int
    like_share: float


class Result(TypedDict):
    """What `report.json` holds.

    `chance` is what a coin scores (log-odds 0 for every sample); `best_counting` names the counting
    baseline with the highest value of each compared metric on these very samples.
    """

    metadata: dict[str, Any]
    data: Data
    resamples: int
    chance: dict[str, float | None]
    systems: list[SystemResult]
    best_counting: dict[str, str]
    differences: list[Difference]
    warnings: list[str]
