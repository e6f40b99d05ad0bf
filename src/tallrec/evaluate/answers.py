"""How a system that is asked in words answered: refusals, share of Yes, ties, tokens and cost."""

import numpy as np

from tallrec.evaluate.metrics import METRICS
from tallrec.evaluate.schema import AnswerCounts, AnswerResult
from tallrec.types import BoolArray, FloatArray


def answer_result(counts: AnswerCounts, labels: BoolArray, scores: FloatArray) -> AnswerResult:
    """Adds to the counts what follows from the scores.

    Args:
        counts: What was counted while asking.
        labels: True where the user liked the target, shape [n].
        scores: Log-odds, shape [n_seeds, n]; NaN where there is no score.
    """
    scored = ~np.isnan(scores)
    yes = scores[scored] > 0
    return {
        **counts,
        "yes_share": float(yes.mean()) if len(yes) else None,
        "tied_pairs": _mean([tied_pairs(labels, row) for row in scores]),
        "auc_all": _mean([auc_with_coin(labels, row) for row in scores]),
    }


def tied_pairs(labels: BoolArray, scores: FloatArray) -> float:
    """Share of pairs of a scored like and a scored dislike whose scores are equal, NaN for none."""
    scored = ~np.isnan(scores)
    _, level = np.unique(scores[scored], return_inverse=True)
    likes = np.bincount(level[labels[scored]], minlength=len(level))
    dislikes = np.bincount(level[~labels[scored]], minlength=len(level))
    pairs = likes.sum() * dislikes.sum()
    return float((likes * dislikes).sum() / pairs) if pairs else np.nan


def auc_with_coin(labels: BoolArray, scores: FloatArray) -> float:
    """Pooled AUC over all samples if those without a score (NaN) are ranked by a coin.

    Of a pair with such a sample, the expectation is a half; NaN for samples of one label only.
    """
    scored = ~np.isnan(scores)
    pairs = labels.sum() * (~labels).sum()
    ranked = labels[scored].sum() * (~labels[scored]).sum()
    if not pairs:
        return np.nan
    if not ranked:
        return 0.5
    auc = METRICS["auc"](labels, scores, np.zeros(len(labels)))
    return float(0.5 + (auc - 0.5) * ranked / pairs)


def _mean(values: list[float]) -> float | None:
    mean = np.mean(values)
    return None if np.isnan(mean) else float(mean)
