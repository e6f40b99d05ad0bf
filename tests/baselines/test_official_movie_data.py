"""What counting alone reaches on the paper's 1,000 movie tests."""

import numpy as np
import pytest

from tallrec.assets import fetch
from tallrec.baselines import COUNTING_BASELINES
from tallrec.data.movielens import read_movielens_100k
from tallrec.data.samples import build_samples
from tallrec.data.shots import draw_shots
from tallrec.data.splits import split_paper
from tallrec.evaluate import METRICS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def splits():
    return split_paper(build_samples(read_movielens_100k(fetch("movielens-100k"))))


def figures(scorer, test):
    scores = scorer(test)
    return [METRICS[name](test.labels, scores, test.users) for name in ("auc", "gauc")]


def test_like_rate(splits):
    scorer = COUNTING_BASELINES["like-rate"](splits.train)
    assert np.round(figures(scorer, splits.test), 3).tolist() == [0.726, 0.601]


@pytest.mark.parametrize(
    ("shots", "auc", "gauc"), [(16, 0.728, 0.609), (64, 0.735, 0.627), (256, 0.747, 0.662)]
)
def test_like_rate_and_item_mean_from_shots(splits, shots, auc, gauc):
    fit = COUNTING_BASELINES["like-rate + item mean"]
    draws = [
        figures(fit(draw_shots(splits.train, shots, seed=seed)), splits.test) for seed in range(100)
    ]
    assert np.mean(draws, axis=0) == pytest.approx([auc, gauc], abs=0.005)
