"""Invented evaluations."""

import numpy as np

from tallrec.evaluate import COUNTING, MODEL, Evaluation, System


def make_evaluation(*, users=40, rows=800, skill=2.0, seeds=3, metadata=None, seed=0) -> Evaluation:
    """A model that knows the taste by `skill`, a count of generosity, and noise."""
    rng = np.random.default_rng(seed)
    who = rng.integers(users, size=rows)
    generosity, taste = rng.normal(size=users)[who], rng.normal(size=rows)
    labels = rng.random(rows) < 1 / (1 + np.exp(-generosity - 2 * taste))
    model = generosity + skill * taste + rng.normal(size=(seeds, rows))
    return Evaluation(
        labels,
        who,
        (
            System("tuned", MODEL, model),
            System("like-rate", COUNTING, generosity[None]),
            System("item mean", COUNTING, rng.normal(size=(2, rows))),
        ),
        {"test_hash": "1234", "shots": 64} if metadata is None else metadata,
    )
