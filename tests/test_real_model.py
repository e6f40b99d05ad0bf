"""The embedded model on real data: what the tiny model cannot show."""

import json

import numpy as np
import pytest

from tallrec.assets import fetch
from tallrec.data.movielens import read_movielens_100k
from tallrec.data.prepared import PreparedInfo, read_prepared, write_prepared
from tallrec.data.samples import build_samples
from tallrec.data.splits import split_paper
from tallrec.evaluate import METRICS
from tallrec.llm.adapter import load_adapter
from tallrec.recipe_files import load_recipe
from tallrec.steps.stages import scorer_of
from tallrec.steps.tune import load, tune_recipe
from tallrec.types import Splits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The paper's training rows, and a few validation rows of every user in place of its test."""
    splits = split_paper(build_samples(read_movielens_100k(fetch("movielens-100k"))))
    few = splits.valid[np.arange(0, 1000, 8)]
    folder = tmp_path_factory.mktemp("movies") / "data"
    info = PreparedInfo("movielens-100k", "movie", "paper", 10, 10, 3.0, 0)
    write_prepared(folder, Splits(splits.train, few, few), info)
    return folder


def test_tuning_on_real_shots_is_seen_in_the_real_model(data, tmp_path):
    recipe = load_recipe("demo", ("shots.count=8", "shots.orders=1", "stages.0.epochs=6"))
    backbone = load(recipe, say=lambda _line: None)
    rows = read_prepared(data).splits.valid
    untuned = scorer_of(recipe, backbone, backbone.model, "movie")(rows)
    # The template alone lets the model read generosity from a history.
    assert METRICS["auc"](rows.labels, untuned, rows.users) > 0.6
    run = tune_recipe(
        recipe, tmp_path / "run", data=data, backbone=backbone, say=lambda _line: None
    )
    log = (run.seed(0) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in log]
    assert losses[-1] < losses[0]
    model = load_adapter(backbone, run.seed(0) / "adapter")
    tuned = scorer_of(recipe, backbone, model, "movie")(rows)
    assert METRICS["auc"](rows.labels, tuned, rows.users) > 0.6
