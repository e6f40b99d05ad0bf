import subprocess
import sys
from pathlib import Path

import pytest

from tallrec.recipe_files import load_recipe
from tallrec.run import create_run, find_runs, free_path, open_run

RECIPE = load_recipe("demo")


def finish(run):
    for seed in run.recipe.seeds:
        (run.seed(seed) / "adapter").mkdir(parents=True)
    (run.path / "report.json").write_text("{}", encoding="utf-8")


def test_a_run_records_where_it_came_from(tmp_path):
    run = create_run(tmp_path / "a", RECIPE)
    assert open_run(tmp_path / "a").recipe == RECIPE
    assert run.info["command"].startswith("tallrec")
    assert run.info["folder"] == str(Path.cwd())
    assert {"torch", "transformers", "peft"} <= run.info["libraries"].keys()
    run.add(data={"folder": "x"})
    assert open_run(tmp_path / "a").info["data"] == {"folder": "x"}
    assert run.info["tallrec"]


def test_a_run_of_the_same_recipe_is_opened_again(tmp_path):
    run = create_run(tmp_path / "a", RECIPE)
    run.add(marked=True)
    assert create_run(tmp_path / "a", RECIPE).info["marked"]
    assert not run.tuned
    finish(run)
    assert create_run(tmp_path / "a", RECIPE).evaluated


def test_the_command_to_repeat_a_run_names_data_that_is_not_its_own(tmp_path):
    run = create_run(tmp_path / "a b", RECIPE)
    recipe, again = f"'{tmp_path}/a b/recipe.toml'", f"'{tmp_path}/a b-again'"
    assert run.repeat == f"tallrec run {recipe} --out {again}"
    run.add(data={"folder": str(tmp_path / "a b" / "data")})
    assert run.repeat == f"tallrec run {recipe} --out {again}"
    run.add(data={"folder": "/movies"})
    assert run.repeat == f"tallrec run {recipe} --out {again} --data /movies"


def test_two_processes_do_not_work_on_one_run(tmp_path):
    run = create_run(tmp_path / "a", RECIPE)
    code = (
        "import sys; from pathlib import Path; from tallrec.run import open_run\n"
        "with open_run(Path(sys.argv[1])).locked(): pass"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    with run.locked():
        other = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "another process is working on" in other.stderr
    subprocess.run(command, check=True)


def test_a_run_of_another_version_is_left_alone(tmp_path):
    run = create_run(tmp_path / "demo", RECIPE)
    recipe = run.path / "recipe.toml"
    recipe.write_text(recipe.read_text(encoding="utf-8") + "[past]\nkey = 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"this version of tallrec can read.*past: there is no"):
        open_run(run.path)
    assert free_path(run.path) == tmp_path / "demo-2"


def test_runs_are_found_in_folders_of_folders(tmp_path):
    for name in ("b", "a", "ablation/c"):
        create_run(tmp_path / name, RECIPE)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "recipe.toml").write_text("name = 3", encoding="utf-8")
    found = {str(run.path.relative_to(tmp_path)) for run in find_runs(tmp_path)}
    assert found == {"a", "b", "ablation/c"}


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
