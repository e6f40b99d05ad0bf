"""References: what one would pick who has all the data, fitted on all of it.

Each reads a few numbers of a sample, and a classifier of scikit-learn weighs them. The user who is
asked about is new, so the classifier must learn from numbers such as a new user gets: those of a
training sample are read by models that are fitted without its user. Neither its own answer nor any
other of its user gets into them, except what its history shows.

An item that was never met, or an empty history, leaves the score to what is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from threadpoolctl import threadpool_limits

from tallrec.baselines.matrices import (
    history_matrix,
    item_counts,
    item_shares,
    less_item_shares,
    target_columns,
    user_matrix,
)
from tallrec.baselines.trivial import (
    fit_item_mean,
    fit_like_rate_item_mean,
    history_counts,
    like_rate,
)
from tallrec.types import FloatArray, Samples, Scorer

Features = Callable[[Samples], FloatArray]
"""Numbers about each sample, shape [n, n_features]; NaN where one says nothing."""

FOLDS = 5
_READ_AT_ONCE = 65_536

# Chosen by AUC + GAUC on the validation part of the paper's movie data, fitted on all users outside
# validation and test: `python benchmarks/references.py` has what was tried. All optima are flat.
NEIGHBOURS = 200
ALS = {"factors": 8, "regularization": 10.0, "alpha": 100.0}  # 32 differ more from seed to seed
BOOSTING = {"learning_rate": 0.03, "max_iter": 200, "max_leaf_nodes": 31, "min_samples_leaf": 100}


def fit_item_knn(samples: Samples) -> Scorer:
    """Item-based nearest neighbours beside the two counts, like-rate and item mean.

    The similarity of two items is the cosine of how much more each user liked them than others did
    (Sarwar et al., 2001, "Item-Based Collaborative Filtering"), by implicit. The target's
    similarities to the items of a history are summed, each times how much more that item was liked
    than by others: a dislike counts against what is similar.

    Args:
        samples: Labelled samples.

    Raises:
        ValueError: If implicit is not installed, a sample has no label, or there are too few.
    """
    return _fit(read_neighbours, _linear(), samples)


def fit_matrix_factorization(samples: Samples) -> Scorer:
    """Matrix factorization beside the two counts, like-rate and item mean.

    Hu et al. (2008), "Collaborative Filtering for Implicit Feedback Datasets", by implicit: likes
    are preferences of 1 and dislikes of 0, both of high confidence, all else 0 of low confidence. A
    history is folded in: its user's factors are the best ones for the items as they are.

    Args:
        samples: Labelled samples.

    Raises:
        ValueError: If implicit is not installed, a sample has no label, or there are too few.
    """
    return _fit(read_factors, _linear(), samples)


def fit_gradient_boosting(samples: Samples) -> Scorer:
    """Gradient-boosted trees on counts of the history and the item.

    They read the history's share of likes and length, the target's likes, dislikes and share of
    likes, the mean share of the history's items, and how much more of them this user liked.

    Args:
        samples: Labelled samples.

    Raises:
        ValueError: If a sample has no label, or there are too few.
    """
    trees = HistGradientBoostingClassifier(early_stopping=False, random_state=0, **BOOSTING)
    return _fit(read_counts, trees, samples)


REFERENCES: dict[str, Callable[[Samples], Scorer]] = {
    "item-mean": fit_item_mean,
    "like-rate-item-mean": fit_like_rate_item_mean,
    "item-knn": fit_item_knn,
    "matrix-factorization": fit_matrix_factorization,
    "gradient-boosting": fit_gradient_boosting,
}
"""Name to fitting function, all of one signature: labelled samples in, a `Scorer` out."""


def out_of_fold(read: Callable[[Samples], Features], samples: Samples) -> FloatArray:
    """The features of each sample, read by what was fitted without its user, [n, n_features].

    Raises:
        ValueError: If all samples are of one user.
    """
    folds = min(FOLDS, len(np.unique(samples.users)))
    if folds < 2:
        raise ValueError("references need labelled samples of at least two users")
    parts = GroupKFold(folds).split(samples.users, groups=samples.users)
    read_parts = [(held, _by_parts(read(samples[others]), samples[held])) for others, held in parts]
    features = np.empty((len(samples), read_parts[0][1].shape[1]))
    for held, values in read_parts:
        features[held] = values
    return features


def read_neighbours(samples: Samples) -> Features:
    """Like-rate, item mean, and what the nearest neighbours of the target say."""
    nearest = _implicit().nearest_neighbours.ItemItemRecommender(K=NEIGHBOURS + 1)  # and itself
    matrix = user_matrix(samples)
    shares = item_shares(matrix)
    # Of columns of length 1 the product is the cosine. implicit's own normalization does the same
    # and warns of the format that it makes.
    surprise = normalize(less_item_shares(matrix, shares), axis=0)
    nearest.fit(surprise.tocsr(), show_progress=False)
    similar = nearest.similarity
    similar.resize(matrix.shape[1], matrix.shape[1])  # implicit leaves out empty last rows
    similar.setdiag(0)
    item_mean = fit_item_mean(samples)

    def read(asked: Samples) -> FloatArray:
        history = less_item_shares(history_matrix(asked, samples.catalog), shares)
        to_target = similar[target_columns(asked, samples.catalog)]
        votes = np.asarray(history.multiply(to_target).sum(axis=1)).ravel()
        return np.column_stack([like_rate(asked), item_mean(asked), votes])

    return read


def read_factors(samples: Samples) -> Features:
    """Like-rate, item mean, and the product of the factors of user and target."""
    implicit = _implicit()
    matrix = user_matrix(samples)
    with threadpool_limits(1, "blas"):  # as implicit asks for: it has threads of its own
        model = implicit.cpu.als.AlternatingLeastSquares(use_cg=False, random_state=0, **ALS)
        model.fit(matrix, show_progress=False)
    met = np.asarray(abs(matrix).sum(axis=0)).ravel() > 0
    item_mean = fit_item_mean(samples)

    def read(asked: Samples) -> FloatArray:
        history = history_matrix(asked, samples.catalog)
        targets = target_columns(asked, samples.catalog)
        users = model.recalculate_user(np.arange(len(asked)), history)
        affinity = (users * model.item_factors[targets]).sum(axis=1, dtype=np.float64)
        says_nothing = ~met[targets] | (np.diff(history.indptr) == 0)
        affinity = np.where(says_nothing, np.nan, affinity)
        return np.column_stack([like_rate(asked), item_mean(asked), affinity])

    return read


def read_counts(samples: Samples) -> Features:
    """Counts of the history, of the target and of the history's items."""
    matrix = user_matrix(samples)
    item_likes, item_dislikes = item_counts(matrix)
    shares = item_shares(matrix)

    def read(asked: Samples) -> FloatArray:
        likes, dislikes = history_counts(asked)
        history = history_matrix(asked, samples.catalog)
        targets = target_columns(asked, samples.catalog)
        known = np.maximum(np.diff(history.indptr), 1)
        surprise = less_item_shares(history, shares).sum(axis=1)
        return np.column_stack(
            [
                (likes + 1) / (likes + dislikes + 2),
                likes + dislikes,
                item_likes[targets],
                item_dislikes[targets],
                shares[targets],
                (abs(history) @ shares) / known,
                np.asarray(surprise).ravel() / known,
            ]
        )

    return read


def _fit(read: Callable[[Samples], Features], classifier: Any, known: Samples) -> Scorer:
    if known.labels.all() or not known.labels.any():
        raise ValueError("references need both likes and dislikes to learn from")
    classifier.fit(out_of_fold(read, known), known.labels)
    features = read(known)

    def score(samples: Samples) -> FloatArray:
        if not len(samples):
            return np.zeros(0)
        log_odds: FloatArray = classifier.decision_function(_by_parts(features, samples))
        return log_odds

    return score


def _by_parts(features: Features, samples: Samples) -> FloatArray:
    """Features of so many rows at once that what is computed on the way fits into memory."""
    starts = range(0, len(samples), _READ_AT_ONCE)
    return np.concatenate([features(samples[i : i + _READ_AT_ONCE]) for i in starts])


def _linear() -> Any:
    """A sum of weighed features; one that says nothing counts as its mean."""
    imputer = SimpleImputer(keep_empty_features=True)
    return make_pipeline(imputer, StandardScaler(), LogisticRegression())


def _implicit() -> Any:
    """The package, imported when it is needed.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import implicit.cpu.als
        import implicit.nearest_neighbours
    except ImportError:
        raise ValueError(
            "item-knn and matrix-factorization need a package that is not installed: "
            "pip install 'tallrec[references]'"
        ) from None
    return implicit
