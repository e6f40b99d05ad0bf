import pytest

from tallrec.recipe import load_recipe
from tallrec.run import create_run, free_path, open_run

RECIPE = load_recipe("demo")


def finish(run):
    for seed in run.recipe.seeds:
        (run.seed(seed) / "adapter").mkdir(parents=True)


def test_a_run_records_where_it_came_from(tmp_path):
    run = create_run(tmp_path / "a", RECIPE)
    assert open_run(tmp_path / "a").recipe == RECIPE
    assert run.info["command"][0] == "tallrec"
    assert {"torch", "transformers", "peft"} <= run.info["libraries"].keys()
    run.add(data={"folder": "x"})
    assert open_run(tmp_path / "a").info["data"] == {"folder": "x"}
    assert run.info["tallrec"]


def test_an_unfinished_run_is_continued_and_a_finished_one_kept(tmp_path):
    run = create_run(tmp_path / "a", RECIPE)
    run.add(marked=True)
    assert create_run(tmp_path / "a", RECIPE).info["marked"]
    finish(run)
    with pytest.raises(ValueError, match="finished and is not overwritten"):
        create_run(tmp_path / "a", RECIPE)


def test_another_recipe_is_refused(tmp_path):
    create_run(tmp_path / "a", RECIPE)
    with pytest.raises(ValueError, match="run of another recipe"):
        create_run(tmp_path / "a", load_recipe("demo", ("shots.count=16",)))


def test_a_folder_that_is_no_run_is_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="not a run directory"):
        create_run(tmp_path, RECIPE)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match="not a run directory"):
        open_run(tmp_path / "nothing")


def test_free_path_passes_over_finished_runs_only(tmp_path):
    path = tmp_path / "demo"
    assert free_path(path) == path
    run = create_run(path, RECIPE)
    assert free_path(path) == path
    finish(run)
    assert free_path(path) == tmp_path / "demo-2"
