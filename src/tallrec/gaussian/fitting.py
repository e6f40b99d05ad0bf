"""How much each part of the kernel counts: the weights that make the answers most probable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, lapack
from scipy.optimize import minimize

from tallrec.gaussian.inputs import Opinions
from tallrec.gaussian.kernel import part_covariances
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
    found = [(name, part) for name, part in part_covariances(opinions, opinions) if part.any()]
    likely = [_LIKELY.get(name, _LIKELY_OTHERS) for name, _ in found]
    prior = np.log([*likely, _LIKELY_NOISE])
    covariances = np.stack([part for _, part in found])
    best = minimize(
        _loss,
        prior,
        args=(prior, covariances, signed(liked)),
        jac=True,
        method="L-BFGS-B",
        bounds=np.log([*[_BOUNDS] * len(found), _NOISE_BOUNDS]),
        options={"maxiter": _STEPS},
    )
    *parts, noise = np.exp(best.x).tolist()
    return Weights({name: weight for (name, _), weight in zip(found, parts, strict=True)}, noise)


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
    logs: FloatArray, prior: FloatArray, covariances: FloatArray, answers: FloatArray
) -> tuple[float, FloatArray]:
    """Negative log posterior of the weights' logarithms, and its gradient."""
    weights = np.exp(logs)
    total = np.tensordot(weights[:-1], covariances, axes=1)
    total[np.diag_indices_from(total)] += weights[-1]
    factor = cholesky(total, lower=True, overwrite_a=True)
    explained = cho_solve((factor, True), answers)
    off = (logs - prior) / _SPREAD
    value = 0.5 * (answers @ explained + off @ off) + np.log(factor.diagonal()).sum()
    inverse, _ = lapack.dpotri(factor, lower=1)  # its lower triangle
    # Of symmetric matrices, tr(A B) is the sum of A * B: twice that below the diagonal.
    slope = 2 * np.tril(inverse, -1) + np.diag(inverse.diagonal()) - np.outer(explained, explained)
    of_parts = np.tensordot(covariances, slope, axes=2)
    gradient = 0.5 * weights * np.append(of_parts, slope.trace())
    return float(value), gradient + off / _SPREAD
