"""From scores to findings: figures, intervals, comparisons with counting, and plain warnings."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tallrec.evaluate import bootstrap
from tallrec.evaluate.answers import answer_result
from tallrec.evaluate.metrics import METRICS
from tallrec.evaluate.schema import (
    COUNTING,
    Data,
    Difference,
    Evaluation,
    MetricResult,
    Result,
    System,
    SystemResult,
)
from tallrec.types import FloatArray

COMPARED = ("auc", "gauc")
"""Metrics by which a system is held against the best counting baseline."""

FEW_USERS = 30


def summarize(
    evaluation: Evaluation, resamples: int = bootstrap.N_RESAMPLES, seed: int = 0
) -> Result:
    """Computes the report of an evaluation.

    Args:
        evaluation: Labels, users and scores.
        resamples: Bootstrap resamples of the users; all figures share them.
        seed: Seed of the resamples.

    Returns:
        Plain values, ready for `json.dumps`.
    """
    sampler = _Sampler(evaluation, resamples, seed)
    systems = [_system_result(sampler, system) for system in evaluation.systems]
    best = best_counting(systems)
    by_name = {system.name: system for system in evaluation.systems}
    differences = [
        _difference(sampler, system, by_name[baseline], metric)
        for system in evaluation.systems
        if system.kind != COUNTING
        for metric, baseline in best.items()
    ]
    data = _data(evaluation)
    coin = np.zeros(len(evaluation.labels))
    return {
        "metadata": dict(evaluation.metadata),
        "data": data,
        "resamples": resamples,
        "chance": {
            name: _plain(metric(evaluation.labels, coin, evaluation.users))
            for name, metric in METRICS.items()
        },
        "systems": systems,
        "best_counting": best,
        "differences": differences,
        "warnings": [
            *_data_warnings(data),
            *_system_warnings(data, systems, resamples),
            *_counting_warnings(systems, differences),
        ],
    }


def paired_differences(
    evaluation: Evaluation,
    pairs: Sequence[tuple[str, str]],
    resamples: int = bootstrap.N_RESAMPLES,
    seed: int = 0,
) -> list[Difference]:
    """How much a system is above another one, for each pair of names and compared metric."""
    sampler = _Sampler(evaluation, resamples, seed)
    by_name = {system.name: system for system in evaluation.systems}
    return [
        _difference(sampler, by_name[system], by_name[baseline], metric)
        for system, baseline in pairs
        for metric in COMPARED
    ]


def best_counting(systems: list[SystemResult]) -> dict[str, str]:
    """The hardest comparison: per compared metric, the counting baseline highest in it.

    It is picked on the test samples themselves, which can only make it harder to beat. A metric
    that no counting baseline defines is left out.
    """
    best = {}
    for metric in COMPARED:
        means = {
            system["name"]: mean
            for system in systems
            if system["kind"] == COUNTING
            and (mean := system["metrics"][metric]["mean"]) is not None
        }
        if means:
            best[metric] = max(means, key=means.__getitem__)
    return best


class _Sampler:
    """Computes metrics of scores on all samples and on the shared resamples."""

    def __init__(self, evaluation: Evaluation, resamples: int, seed: int) -> None:
        self.labels = evaluation.labels
        names, self.users = np.unique(evaluation.users, return_inverse=True)
        self.n_users = len(names)
        self.resamples, self.seed = resamples, seed

    def __call__(
        self, scores: FloatArray, metrics: Sequence[str]
    ) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Each metric by seed, shape [n_seeds], and its mean over seeds in each resample."""
        statistics = [
            METRICS[name].by_user_weight(self.labels, row, self.users)
            for name in metrics
            for row in scores
        ]
        everyone = np.ones((self.n_users, 1))
        values = np.array([statistic(everyone)[0] for statistic in statistics])
        resampled = bootstrap.resample_users(
            statistics, self.n_users, len(self.labels), self.resamples, self.seed
        )
        shape = (len(metrics), len(scores), -1)
        pairs = zip(values.reshape(shape[:2]), resampled.reshape(shape).mean(axis=1), strict=True)
        return dict(zip(metrics, pairs, strict=True))


def _system_result(sampler: _Sampler, system: System) -> SystemResult:
    values = sampler(system.scores, tuple(METRICS))
    result: SystemResult = {
        "name": system.name,
        "kind": system.kind,
        "unscored": np.isnan(system.scores).sum(axis=1).tolist(),
        "metrics": {name: _metric_result(*pair) for name, pair in values.items()},
    }
    if system.answers is not None:
        result["answers"] = answer_result(system.answers, sampler.labels, system.scores)
    return result


def _metric_result(per_seed: FloatArray, resampled: FloatArray) -> MetricResult:
    interval = bootstrap.interval(resampled)
    return {
        "mean": _plain(per_seed.mean()),
        "low": _plain(interval.low),
        "high": _plain(interval.high),
        "sd": _plain(per_seed.std(ddof=1)) if len(per_seed) > 1 else None,
        "per_seed": [_plain(value) for value in per_seed],
        "dropped": interval.dropped,
    }


def _difference(sampler: _Sampler, system: System, baseline: System, metric: str) -> Difference:
    unscored = np.isnan(system.scores).any(axis=0) | np.isnan(baseline.scores).any(axis=0)
    value, resampled = sampler(np.where(unscored, np.nan, system.scores), [metric])[metric]
    other, others = sampler(np.where(unscored, np.nan, baseline.scores), [metric])[metric]
    differences = resampled - others
    defined = differences[~np.isnan(differences)]
    interval = bootstrap.interval(differences)
    return {
        "system": system.name,
        "baseline": baseline.name,
        "metric": metric,
        "rows": int(np.sum(~unscored)),
        "difference": _plain(value.mean() - other.mean()),
        "low": _plain(interval.low),
        "high": _plain(interval.high),
        "share_not_positive": _plain(np.mean(defined <= 0)) if len(defined) else None,
        "p": _plain(bootstrap.two_sided_p(differences)),
        "verdict": _verdict(interval),
    }


def _verdict(interval: bootstrap.Interval) -> str:
    if np.isnan(interval.low):
        return "undefined"
    if interval.low > 0:
        return "better"
    return "worse" if interval.high < 0 else "not distinguishable"


def _data_warnings(data: Data) -> Iterator[str]:
    if data["users"] < FEW_USERS:
        yield (
            f"Only {data['users']} test users: the intervals are wide, and with so few users "
            "themselves uncertain."
        )
    if data["like_share"] in (0, 1):
        only = "likes" if data["like_share"] else "dislikes"
        yield f"The test samples are all {only}: AUC and GAUC are undefined."
    elif not data["users_with_both"]:
        yield "No test user has both likes and dislikes: GAUC is undefined."


def _system_warnings(data: Data, systems: list[SystemResult], resamples: int) -> Iterator[str]:
    for system in systems:
        if any(system["unscored"]):
            worst = max(system["unscored"])
            yield (
                f"{system['name']} could not score {worst:,} of {data['rows']:,} samples (in its "
                "worst seed); its metrics leave them out."
            )
    dropped = max(
        (
            metric["dropped"]
            for system in systems
            for metric in system["metrics"].values()
            if metric["low"] is not None
        ),
        default=0,
    )
    if dropped:
        yield (
            f"Up to {dropped:,} of {resamples:,} resamples left a metric undefined; the intervals "
            "leave them out."
        )


def _counting_warnings(systems: list[SystemResult], differences: list[Difference]) -> Iterator[str]:
    if not any(system["kind"] == COUNTING for system in systems):
        yield "No counting baseline was evaluated: nothing here says whether a model was needed."
    for d in differences:
        if d["difference"] is None or d["low"] is None or d["verdict"] == "better":
            continue
        fails = "does not beat" if d["difference"] <= 0 else "is not shown to beat"
        yield (
            f"{d['system']} {fails} the best counting baseline ({d['baseline']}) in "
            f"{METRICS[d['metric']].title}: difference {d['difference']:+.3f}, 95 % interval "
            f"{d['low']:+.3f} to {d['high']:+.3f} ({d['verdict']})."
        )


def _data(evaluation: Evaluation) -> Data:
    _, users = np.unique(evaluation.users, return_inverse=True)
    likes = np.bincount(users, evaluation.labels)
    both = (likes > 0) & (likes < np.bincount(users))
    return {
        "rows": len(evaluation.labels),
        "users": len(likes),
        "users_with_both": int(both.sum()),
        "like_share": float(evaluation.labels.mean()),
    }


def _plain(value: float | np.floating[Any]) -> float | None:
    """A float for JSON, which knows no NaN."""
    return None if np.isnan(value) else float(value)
