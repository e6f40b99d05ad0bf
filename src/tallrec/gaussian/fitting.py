"""How much each part of the kernel counts: the weights that make the answers most probable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, lapack
from scipy.optimize import minimize

from tallrec.gaussian.inputs import Opinions
from tallrec.gaussian.kernel import USER_PARTS, part_covariances
from tallrec.types import BoolArray, FloatArray, IntArray

_LIKELY = {"user": 0.15, "user, lately": 0.08, "item": 0.1}
_LIKELY_OTHERS, _LIKELY_NOISE = 0.01, 0.65
_SPREAD = 2.0  # of the logarithm of a weight: a factor of about 7 either way
_MOST_OPINIONS = 1500  # that weights are learnt from; a step costs their cube
_STEPS = 60
_BOUNDS, _NOISE_BOUNDS = (1e-6, 10.0), (0.05, 10.0)  # with less noise, rounding counts


@dataclass(frozen=True)
class Weights:
    """What was learnt.

    Attributes:
        parts: The weight of each part that the shots show, such as years where there are any.
        noise: The variance of answers that nothing explains.
    """

    parts: dict[str, float]
    noise: float


def signed(liked: BoolArray) -> FloatArray:
    """Likes as 1 and dislikes as -1, shape [n]."""
    return np.where(liked, 1.0, -1.0)


def fit_weights(opinions: Opinions, liked: BoolArray) -> Weights:
    """The weights of highest posterior density, by its gradient (L-BFGS).

    Rasmussen and Williams (2006), "Gaussian Processes for Machine Learning", section 5.4.1. The
    logarithms of the weights have a wide normal prior: few shots leave them where they are likely.

    Args:
        opinions: What the shots show.
        liked: The answers, shape [n].
    """
    return _most_probable([(dict(part_covariances(opinions, opinions)), signed(liked))])


def fit_user_weights(histories: Sequence[tuple[Opinions, FloatArray]]) -> Weights:
    """The weights of the parts that opinions of one user share, likewise.

    Args:
        histories: Opinions of one user each, and what is left of their answers when each item's
            mean is taken away.
    """
    return _most_probable(
        [
            ({name: of_opinions(own, own) for name, of_opinions in USER_PARTS.items()}, left)
            for own, left in histories
        ]
    )


def _most_probable(groups: Sequence[tuple[dict[str, FloatArray], FloatArray]]) -> Weights:
    """Weights given independent groups of answers: each part's covariance, and the answers."""
    found = [name for name in groups[0][0] if any(parts[name].any() for parts, _ in groups)]
    prior = np.log([*(_LIKELY.get(name, _LIKELY_OTHERS) for name in found), _LIKELY_NOISE])
    stacked = [(np.stack([parts[name] for name in found]), answers) for parts, answers in groups]
    best = minimize(
        _loss,
        prior,
        args=(prior, stacked),
        jac=True,
        method="L-BFGS-B",
        bounds=np.log([*[_BOUNDS] * len(found), _NOISE_BOUNDS]),
        options={"maxiter": _STEPS},
    )
    *parts, noise = np.exp(best.x).tolist()
    return Weights(dict(zip(found, parts, strict=True)), noise)


def some_users(users: IntArray) -> IntArray:
    """Rows of as many random users as weights are learnt from, shape [m]."""
    if len(users) <= _MOST_OPINIONS:
        return np.arange(len(users))
    names, codes = np.unique(users, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    sizes = np.cumsum(np.bincount(codes)[order])
    taken = order[: max(1, int(np.searchsorted(sizes, _MOST_OPINIONS, side="right")))]
    return np.flatnonzero(np.isin(codes, taken))


def _loss(
    logs: FloatArray, prior: FloatArray, groups: Sequence[tuple[FloatArray, FloatArray]]
) -> tuple[float, FloatArray]:
    """Negative log posterior of the weights' logarithms, and its gradient."""
    off = (logs - prior) / _SPREAD
    value, gradient = 0.5 * float(off @ off), off / _SPREAD
    for covariances, answers in groups:
        more, slope = _misfit(logs, covariances, answers)
        value, gradient = value + more, gradient + slope
    return value, gradient


def _misfit(
    logs: FloatArray, covariances: FloatArray, answers: FloatArray
) -> tuple[float, FloatArray]:
    """Negative log likelihood of a group of answers (up to a constant), and its gradient."""
    weights = np.exp(logs)
    total = np.tensordot(weights[:-1], covariances, axes=1)
    total[np.diag_indices_from(total)] += weights[-1]
    factor = cholesky(total, lower=True, overwrite_a=True)
    explained = cho_solve((factor, True), answers)
    value = 0.5 * answers @ explained + np.log(factor.diagonal()).sum()
    inverse, _ = lapack.dpotri(factor, lower=1)  # its lower triangle
    # Of symmetric matrices, tr(A B) is the sum of A * B: twice that below the diagonal.
    slope = 2 * np.tril(inverse, -1) + np.diag(inverse.diagonal()) - np.outer(explained, explained)
    of_parts = np.tensordot(covariances, slope, axes=2)
    return float(value), 0.5 * weights * np.append(of_parts, slope.trace())
