"""The Gaussian process of a run: evaluated beside the model, kept with it, and what recommends."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from tallrec.data.prepared import read_prepared, write_prepared
from tallrec.llm.backbone import load_backbone
from tallrec.llm.title_states import title_states
from tallrec.steps.asked import score_run
from tallrec.steps.baselines import FULL_DATA
from tallrec.steps.evaluate import evaluate_run
from tallrec.steps.recommender import Recommender
from tallrec.steps.score_pairs import score_pairs
from tallrec.steps.tune import tune_recipe
from tests.test_pipeline import INFO, process_run, silent, tiny_recipe

NAME = "Gaussian process"
EVENT = {"item": pl.String, "liked": pl.Boolean}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_folder):
    """The run `run` of the backbone as it is, evaluated, and its prepared folder `data`."""
    folder = tmp_path_factory.mktemp("process")
    process_run(folder, tiny_folder, "gaussian_process.full_data=true")
    return folder


def test_the_report_has_its_row_and_the_run_keeps_it(world):
    report = json.loads((world / "run" / "report.json").read_text())
    row = report["systems"][1]
    assert row["name"].endswith(NAME)
    assert row["kind"] == "model"
    assert len(row["metrics"]["auc"]["per_seed"]) == 2
    assert {difference["system"] for difference in report["differences"]} >= {row["name"]}
    for seed in (0, 1):
        assert (world / "run" / f"seed-{seed}" / "gaussian-process.npz").is_file()


def test_one_on_all_data_stands_apart_from_those_on_shots(world):
    report = json.loads((world / "run" / "report.json").read_text())
    row = report["systems"][2]
    assert row["name"].endswith(f"{NAME}, full data")
    assert row["kind"] == "full data"
    assert len(row["metrics"]["auc"]["per_seed"]) == 1
    assert report["metadata"]["full_data"] == FULL_DATA


def test_it_is_fitted_once(world):
    """What is kept is read: a change of the file changes the recommendations."""
    path = world / "run" / "seed-0" / "gaussian-process.npz"
    before = path.read_bytes()
    recommender = Recommender.load(world / "run", say=silent)
    ranked = recommender.rank([("i0", True), ("i1", False)])
    with np.load(path) as file:
        arrays = dict(file)
    arrays["liked"] = ~arrays["liked"]
    np.savez_compressed(path, **arrays)
    try:
        changed = Recommender.load(world / "run", say=silent).rank([("i0", True), ("i1", False)])
    finally:
        path.write_bytes(before)
    assert not np.allclose(ranked["log_odds"], changed["log_odds"])


def test_recommending_by_it_needs_no_backbone(world, monkeypatch):
    def no_backbone(*_arguments, **_options):
        raise AssertionError("loaded")

    monkeypatch.setattr("tallrec.steps.gaussian.load", no_backbone)
    monkeypatch.setattr("tallrec.steps.recommender.load", no_backbone)
    recommender = Recommender.load(world / "run", say=silent)
    history = [("i0", True), ("i2", True), ("i1", False)]
    ranked = recommender.rank(history, k=5)
    assert not set(ranked["item"]) & {item for item, _ in history}
    expected = recommender.score(history, ranked["item"].to_list())
    np.testing.assert_allclose(ranked["log_odds"], expected, atol=1e-9)
    effects = recommender.explain(history, ranked["item"][0])
    assert set(effects["item"]) == {"i0", "i1", "i2"}
    without = recommender.score(history[1:], [ranked["item"][0]])
    effect = effects.filter(item="i0")["effect"].item()
    assert effect == pytest.approx(ranked["log_odds"][0] - without[0], abs=1e-9)


def test_the_model_can_be_asked_instead(world):
    by_model = Recommender.load(world / "run", by="model", say=silent)
    assert np.isfinite(by_model.llm(read_prepared(world / "data").splits.test[:2])).all()
    with pytest.raises(ValueError, match="by model or gaussian-process; got 'magic'"):
        Recommender.load(world / "run", by="magic", say=silent)


def test_tables_and_parts_are_scored_by_it_unless_the_model_is_wished_for(world, tmp_path):
    run, out = world / "run", tmp_path / "out.parquet"
    kept = [pl.read_parquet(run / f"seed-{seed}" / "gaussian-process.parquet") for seed in (0, 1)]
    expected = np.mean([table["log_odds"] for table in kept], axis=0)
    np.testing.assert_allclose(score_run(run, out, say=silent)["log_odds"], expected)

    by_model = score_run(run, out, by="model", say=silent)["log_odds"]
    of_model = [pl.read_parquet(run / f"seed-{seed}" / "scores.parquet") for seed in (0, 1)]
    expected = np.mean([table["log_odds"] for table in of_model], axis=0)
    np.testing.assert_allclose(by_model, expected, atol=1e-5)

    samples = read_prepared(world / "data").splits.test[:7]
    table = tmp_path / "asked.parquet"
    histories = [[{"item": i.id, "liked": liked} for i, liked in s.history] for s in samples]
    pl.DataFrame(
        {"item": [s.target.id for s in samples], "history": histories},
        schema={"item": pl.String, "history": pl.List(pl.Struct(EVENT))},
    ).write_parquet(table)
    score_pairs(run, table, out, say=silent)
    seeds = [
        Recommender.load(run, seed=seed, say=silent).scorer(samples).tolist() for seed in (0, 1)
    ]
    found = pl.read_parquet(out)["log_odds"]
    np.testing.assert_allclose(found, np.mean(seeds, axis=0), atol=1e-9)


def test_a_run_without_one_recommends_by_the_model(world, tmp_path):
    (tmp_path / "model").symlink_to(world / "model")
    plain = tiny_recipe(tmp_path, "stages=[]")
    tune_recipe(plain, tmp_path / "plain", data=world / "data", say=silent)
    assert Recommender.load(tmp_path / "plain", say=silent).llm is not None
    with pytest.raises(ValueError, match=r"no \[gaussian_process\]"):
        Recommender.load(tmp_path / "plain", by="gaussian-process", say=silent)


def test_another_catalogue_is_read_with_the_runs_backbone(world, tmp_path):
    prepared = read_prepared(world / "data")
    catalog = prepared.splits.train.catalog.with_columns(item="other " + pl.col("item"))
    ids = pl.Enum(catalog["item"])
    events = prepared.splits.train.events.with_columns(
        item=pl.lit("other ") + pl.col("item").cast(pl.String)
    ).with_columns(pl.col("item").cast(ids))

    def moved(samples):
        rows = samples.rows.with_columns(
            target=(pl.lit("other ") + pl.col("target").cast(pl.String)).cast(ids)
        )
        return replace(samples, catalog=catalog, events=events, rows=rows)

    splits = prepared.splits
    others = type(splits)(moved(splits.train), moved(splits.valid), moved(splits.test))
    write_prepared(tmp_path / "others", others, INFO)
    result = evaluate_run(
        world / "run", data=tmp_path / "others", out=tmp_path / "report", say=silent
    )
    row = next(system for system in result["systems"] if system["name"].endswith(NAME))
    assert row["metrics"]["auc"]["mean"] is not None


def test_a_title_that_spells_a_special_token_is_text(tiny_folder):
    backbone = load_backbone(tiny_folder, name="tiny", dtype="float32")
    special = backbone.tokenizer.all_special_tokens[0]

    def states(*titles):
        rows = {"item": list(titles), "title": list(titles), "creator": [None] * len(titles)}
        catalog = pl.DataFrame(rows, schema=dict.fromkeys(rows, pl.String))
        return title_states(backbone.model, backbone.tokenizer, catalog, domain="movie")

    sentence = f'In my opinion, the movie "{special}" is a'
    ids = backbone.tokenizer(sentence, split_special_tokens=True, return_tensors="pt")
    assert not set(ids["input_ids"][0].tolist()) & set(backbone.tokenizer.all_special_ids)
    hidden = backbone.model(**ids, output_hidden_states=True).hidden_states[-1][0, -1]
    np.testing.assert_allclose(states(special)[0], hidden.detach().numpy(), atol=1e-4)
    assert states().shape == (0, backbone.model.config.hidden_size)


def test_states_are_those_after_the_sentence_about_a_title(tiny_folder):
    """The library's own hidden states, one title at a time."""
    backbone = load_backbone(tiny_folder, name="tiny", dtype="float32")
    catalog = pl.DataFrame(
        {"item": ["a", "b"], "title": ['A "film"', "Clara"], "creator": [None, "R. Wright"]}
    )
    states = title_states(backbone.model, backbone.tokenizer, catalog, domain="book")
    sentences = [
        "In my opinion, the book \"A 'film'\" is a",
        'In my opinion, the book "Clara" by R. Wright is a',
    ]
    for state, sentence in zip(states, sentences, strict=True):
        ids = backbone.tokenizer(sentence, return_tensors="pt")
        hidden = backbone.model(**ids, output_hidden_states=True).hidden_states[-1][0, -1]
        np.testing.assert_allclose(state, hidden.detach().numpy(), atol=1e-4)
