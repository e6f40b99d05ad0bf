"""The whole path on planted taste with a tiny real model, from tuning to recommending."""

import json

import numpy as np
import polars as pl
import pytest

from tallrec.baselines import COUNTING_BASELINES
from tallrec.data.prepared import PreparedInfo, read_prepared, write_prepared
from tallrec.data.samples import in_blocks
from tallrec.evaluate import METRICS
from tallrec.recipe_files import load_recipe
from tallrec.run import open_run
from tallrec.steps import baselines, check
from tallrec.steps.asked import score_run
from tallrec.steps.baselines import rows_for_baselines
from tallrec.steps.demo import run_demo
from tallrec.steps.evaluate import compare_runs, evaluate_run
from tallrec.steps.recommender import recommend_run
from tallrec.steps.tune import tune_recipe
from tests.planted import planted_splits
from tests.tiny import save_tiny_model

INFO = PreparedInfo("planted", "movie", "users", 8, 8, 3.0, 0)


def silent(_line):
    """Says nothing."""


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_folder):
    """A folder with a tiny model and prepared data, and a run of two seeds on them."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "model").symlink_to(tiny_folder)
    write_prepared(folder / "data", planted_splits(), INFO)
    tune_recipe(tiny_recipe(folder), folder / "run", data=folder / "data", say=silent)
    evaluate_run(folder / "run", say=silent)
    return folder


def tiny_recipe(folder, *settings, process=False):
    """The demo with a tiny model, and with its Gaussian process only if a test is about it."""
    recipe = load_recipe(
        "demo",
        (
            f"backbone.source={folder / 'model'}",
            "backbone.dtype=float32",
            "shots.count=24",
            "seeds=[0, 1]",
            "evaluation.resamples=200",
            "evaluation.zero_shot=true",
            *settings,
        ),
    )
    return recipe if process else recipe.model_copy(update={"gaussian_process": None})


def process_run(folder, model, *settings):
    """An evaluated run of a backbone as it is, with its Gaussian process, and the folder `data`."""
    (folder / "model").symlink_to(model)
    write_prepared(folder / "data", planted_splits(), INFO)
    untuned = ("stages=[]", "evaluation.zero_shot=false", *settings)
    recipe = tiny_recipe(folder, *untuned, process=True)
    tune_recipe(recipe, folder / "run", data=folder / "data", say=silent)
    evaluate_run(folder / "run", say=silent)
    return folder / "run"


def test_a_run_holds_what_the_docs_say(world):
    run = world / "run"
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    expected = {
        ".lock",
        "recipe.toml",
        "run.json",
        "report.md",
        "report.json",
        "roc.png",
        "calibration.png",
        "untuned.parquet",
    }
    for seed in (0, 1):
        expected |= {
            f"seed-{seed}/{name}"
            for name in (
                "adapter/adapter_config.json",
                "adapter/adapter_model.safetensors",
                "adapter/tallrec.json",
                "metrics.jsonl",
                "scores.parquet",
                "tuning.json",
            )
        }
    assert names == expected
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert info["data"]["sha256"] == read_prepared(world / "data").hashes
    assert open_run(run).tuning.keys() == {"seed-0", "seed-1"}


def test_the_report_has_the_model_beside_counting(world):
    report = json.loads((world / "run" / "report.json").read_text(encoding="utf-8"))
    kinds = [system["kind"] for system in report["systems"]]
    assert kinds == ["model", "zero-shot", "counting", "counting", "counting"]
    model = report["systems"][0]["metrics"]["auc"]
    assert len(model["per_seed"]) == 2
    assert report["data"]["rows"] == len(planted_splits().test)
    assert "like-rate" in (world / "run" / "report.md").read_text(encoding="utf-8")


def test_scores_are_those_of_the_rows(world):
    scores = pl.read_parquet(world / "run" / "seed-0" / "scores.parquet")
    test = planted_splits().test
    assert scores["liked"].to_list() == test.labels.tolist()
    assert scores["item"].to_list() == test.rows["target"].cast(pl.String).to_list()
    assert scores["log_odds"].is_finite().all()


def test_seeds_differ_and_repeat(world, tmp_path):
    again = tune_recipe(tiny_recipe(world), tmp_path / "run", data=world / "data", say=silent)
    weights = "adapter/adapter_model.safetensors"
    first, second = ((world / "run" / f"seed-{seed}" / weights).read_bytes() for seed in (0, 1))
    assert first != second
    assert (again.seed(0) / weights).read_bytes() == first


def test_evaluation_reuses_scores_and_gives_the_same_report(world):
    before = json.loads((world / "run" / "report.json").read_text(encoding="utf-8"))
    kept = [world / "run" / "seed-0" / "scores.parquet", world / "run" / "untuned.parquet"]
    stamps = [path.stat().st_mtime_ns for path in kept]
    assert json.loads(json.dumps(evaluate_run(world / "run", say=silent))) == before
    assert [path.stat().st_mtime_ns for path in kept] == stamps


def test_another_part_goes_elsewhere(world, tmp_path):
    with pytest.raises(ValueError, match="needs --out"):
        evaluate_run(world / "run", part="valid", say=silent)
    result = evaluate_run(world / "run", part="valid", out=tmp_path / "valid", say=silent)
    assert result["data"]["rows"] == len(planted_splits().valid)
    assert (tmp_path / "valid" / "report.md").exists()
    with pytest.raises(ValueError, match="part must be one of train, valid, test"):
        evaluate_run(world / "run", part="dev", out=tmp_path, say=silent)


def test_score_writes_the_mean_over_seeds(world, tmp_path):
    table = score_run(world / "run", tmp_path / "scores.parquet", say=silent)
    assert pl.read_parquet(tmp_path / "scores.parquet").equals(table)
    seeds = [
        pl.read_parquet(world / "run" / f"seed-{seed}" / "scores.parquet")["log_odds"].to_numpy()
        for seed in (0, 1)
    ]
    np.testing.assert_allclose(table["log_odds"].to_numpy(), np.mean(seeds, axis=0), atol=1e-5)


def test_recommendations_are_unseen_and_ranked(world):
    best = recommend_run(world / "run", "u3", k=50, say=silent)
    assert set(best["item"]) == {"i20", "i21"}  # the only items that users have not met
    assert best["probability"].is_sorted(descending=True)
    with pytest.raises(ValueError, match="user 'nobody' has no interactions"):
        recommend_run(world / "run", "nobody", say=silent)


def test_compare_puts_runs_side_by_side(world, tmp_path):
    other = tiny_recipe(world, "shots.count=12", "evaluation.zero_shot=true", "template=paper")
    tune_recipe(other, tmp_path / "other", data=world / "data", say=silent)
    with pytest.raises(ValueError, match="has no report yet"):
        compare_runs([world / "run", tmp_path / "other"])
    result = evaluate_run(tmp_path / "other", say=silent)
    assert [system["kind"] for system in result["systems"]][:2] == ["model", "zero-shot"]
    merged = compare_runs([world / "run", tmp_path / "other"], tmp_path / "comparison")
    names = [system["name"] for system in merged["systems"]]
    assert any(name.startswith("run") for name in names)
    assert any(name.startswith("other") for name in names)
    assert (tmp_path / "comparison" / "auc-by-shots.png").exists()


def test_validation_on_shots_leaves_fewer_rows_to_tune_on(world, tmp_path):
    settings = ("seeds=[0]", "shots.orders=1", "shots.stratify=label")
    recipe = tiny_recipe(world, *settings, "shots.validation=shots")
    run = tune_recipe(recipe, tmp_path / "run", data=world / "data", say=silent)
    facts = run.tuning["seed-0"]
    assert (facts["rows"], facts["validation_rows"]) == (18, 6)
    assert 0 <= facts["best_validation_auc"] <= 1
    paper = tiny_recipe(world, "seeds=[0]", "shots.validation=paper", "stages.0.epochs=1")
    run = tune_recipe(paper, tmp_path / "paper", data=world / "data", say=silent)
    assert run.tuning["seed-0"]["validation_rows"] == len(planted_splits().valid)


def test_many_shots_are_shown_in_fewer_orders(world, tmp_path):
    recipe = tiny_recipe(world, "seeds=[0]", "shots.most_rows=60")
    assert recipe.shots.orders == 4
    run = tune_recipe(recipe, tmp_path / "fewer", data=world / "data", say=silent)
    assert run.tuning["seed-0"]["rows"] == 2 * 24
    recipe = tiny_recipe(world, "seeds=[0]", "shots.most_rows=8")
    run = tune_recipe(recipe, tmp_path / "once", data=world / "data", say=silent)
    assert run.tuning["seed-0"]["rows"] == 24


def test_model_and_counts_read_histories_in_blocks(world, tmp_path):
    test = read_prepared(world / "data").splits.test
    results = {}
    for block in (1, 6):
        recipe = tiny_recipe(world, "seeds=[0]", "stages=[]", f"evaluation.block={block}")
        run = tune_recipe(recipe, tmp_path / f"{block}", data=world / "data", say=silent)
        evaluate_run(run.path, say=silent)
        results[block] = result = json.loads((run.path / "report.json").read_text())
        assert ("in blocks of 6" in result["metadata"]["history"]) is (block == 6)
        rows = in_blocks(test, block)
        like_rate = COUNTING_BASELINES["like-rate"](rows)(rows)
        (reported,) = (s for s in result["systems"] if s["name"] == "like-rate")
        measured = METRICS["log_loss"](rows.labels, like_rate, rows.users)
        assert reported["metrics"]["log_loss"]["mean"] == pytest.approx(measured)
    models = [results[block]["systems"][0]["metrics"]["log_loss"]["mean"] for block in (1, 6)]
    assert models[0] != models[1]


def test_the_papers_recommenders_stand_beside_the_model(world, tmp_path, monkeypatch):
    settings = ('evaluation.baselines=["caser", "gru-bert"]', "evaluation.zero_shot=false")
    recipe = tiny_recipe(world, "stages=[]", *settings)
    run = tune_recipe(recipe, tmp_path / "run", data=world / "data", say=silent)
    result = evaluate_run(run.path, say=silent)
    names = [system["name"] for system in result["systems"]]
    assert names[1:4] == ["caser", "gru-bert", "like-rate"]
    caser = result["systems"][1]
    assert caser["kind"] == "sequential"
    assert len(set(caser["metrics"]["auc"]["per_seed"])) == 2
    monkeypatch.setattr(baselines, "fit_sequential", None)  # what was fitted is kept
    assert evaluate_run(run.path, say=silent)["systems"] == result["systems"]


def test_baselines_can_have_the_whole_training_part(world, tmp_path):
    settings = ('evaluation.baselines=["caser"]', "seeds=[0]", "shots.count=1")
    aucs = {}
    for rows in ("shots", "train"):
        recipe = tiny_recipe(world, "stages=[]", *settings, f"evaluation.baselines_on={rows}")
        run = tune_recipe(recipe, tmp_path / rows, data=world / "data", say=silent)
        result = evaluate_run(run.path, say=silent)
        (caser,) = (s for s in result["systems"] if s["name"] == "caser")
        aucs[rows] = caser["metrics"]["auc"]["mean"]
    assert aucs["train"] > 0.8 > aucs["shots"]


def test_held_out_shots_stay_out_of_the_whole_training_part(world):
    own = read_prepared(world / "data")
    settings = ("shots.validation=shots", "evaluation.baselines_on=train")
    fitted, valid = rows_for_baselines(tiny_recipe(world, *settings), own, 0)
    assert len(valid) == 6
    assert len(fitted) == len(own.splits.train) - 6
    assert fitted.rows.join(valid.rows, on=["user", "target"], how="semi").is_empty()


def test_references_are_fitted_once_on_all_data(world, tmp_path, monkeypatch):
    settings = ('evaluation.references=["item-mean", "item-knn"]', "evaluation.zero_shot=false")
    recipe = tiny_recipe(world, "stages=[]", *settings)
    run = tune_recipe(recipe, tmp_path / "run", data=world / "data", say=silent)
    said = []
    result = evaluate_run(run.path, say=said.append)
    assert "Fitting item-knn on all data: 360 samples of 30 users" in said
    mean, knn = result["systems"][1:3]
    assert [mean["name"], knn["name"]] == ["item-mean, full data", "item-knn, full data"]
    assert knn["kind"] == "full data"
    assert len(knn["metrics"]["auc"]["per_seed"]) == 1
    assert knn["metrics"]["auc"]["mean"] > 0.9
    assert "all users who occur in no part" in result["metadata"]["full_data"]
    monkeypatch.setattr(baselines, "REFERENCES", {})  # what was fitted is kept
    assert evaluate_run(run.path, say=silent)["systems"] == result["systems"]


def test_references_need_their_package_before_anything_is_written(world, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "find_spec", lambda _: None)
    recipe = tiny_recipe(world, 'evaluation.references=["item-mean", "item-knn"]')
    with pytest.raises(ValueError, match=r"references: item-knn needs .* pip install implicit"):
        tune_recipe(recipe, tmp_path / "run", data=world / "data", say=silent)
    assert not (tmp_path / "run").exists()


def test_an_unfinished_run_is_continued_and_other_data_refused(world, tmp_path):
    recipe = tiny_recipe(world)
    run = tune_recipe(recipe, tmp_path / "run", data=world / "data", say=silent)
    (run.seed(1) / "adapter").rename(tmp_path / "kept")
    with pytest.raises(ValueError, match="is not finished"):
        evaluate_run(run.path, say=silent)
    write_prepared(tmp_path / "other", planted_splits(seed=1), INFO)
    with pytest.raises(ValueError, match="begun on other data"):
        tune_recipe(recipe, run.path, data=tmp_path / "other", say=silent)
    tune_recipe(recipe, run.path, data=world / "data", say=silent)
    weights = "adapter_model.safetensors"
    mended = (run.seed(1) / "adapter" / weights).read_bytes()
    assert mended == (tmp_path / "kept" / weights).read_bytes()


def test_the_demo_goes_all_the_way(world, tmp_path):
    recipe = tiny_recipe(world, "seeds=[0]", process=True)
    recipe = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"dataset": str(world / "data")})}
    )
    shown = []
    run_demo(recipe, tmp_path / "demo", k=2, say=silent, show=shown.append)
    assert len(shown) == 2
    assert shown[1].row_count == 2
    assert (tmp_path / "demo" / "report.md").exists()


def test_an_adapter_of_another_model_is_refused(world, tmp_path):
    save_tiny_model(tmp_path / "other-model", seed=1)
    run = world / "run"
    recipe = tiny_recipe(world)
    foreign = replace_backbone(recipe, tmp_path / "other-model")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("run.json", "seed-0", "seed-1"):
        (copy / name).symlink_to(run / name)
    (copy / "recipe.toml").write_text(foreign.to_toml(), encoding="utf-8")
    with pytest.raises(ValueError, match="was tuned on"):
        recommend_run(copy, "u3", say=silent)


def replace_backbone(recipe, source):
    return recipe.model_copy(
        update={"backbone": recipe.backbone.model_copy(update={"source": str(source)})}
    )
