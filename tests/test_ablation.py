"""The ablation: every part once, the first stage shared, and a page that says which stage helps."""

import json

import pytest

from tallrec.data.prepared import write_prepared
from tallrec.recipe_files import load_recipe
from tallrec.run import find_runs
from tallrec.steps.ablate import ablate
from tests.planted import planted_splits, write_instructions
from tests.test_pipeline import INFO, silent


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_folder):
    """An ablation of two recipes over two numbers of shots and two seeds."""
    folder = tmp_path_factory.mktemp("ablation")
    write_prepared(folder / "data", planted_splits(), INFO)
    write_instructions(folder / "general.json", 8)
    recipes = [recipe_of(name, folder, tiny_folder) for name in ("two-stages", "two-stages-paper")]
    page = ablate(
        recipes, folder / "out", shots=[8, 16], seeds=[0, 1], data=folder / "data", say=silent
    )
    return folder, recipes, page


def recipe_of(name, folder, model, *settings):
    given = (
        f"backbone.source={model}",
        "backbone.dtype=float32",
        f"stages.0.source={folder / 'general.json'}",
        "stages.0.count=8",
        "shots.orders=1",
        "evaluation.resamples=200",
    )
    return load_recipe(name, (*given, *settings))


def test_every_part_is_a_run_and_the_first_stage_is_tuned_once(world):
    folder, _, _ = world
    out = folder / "out"
    found = {str(run.path.relative_to(out)) for run in find_runs(out)}
    parts = {"neither", "at", "rt-8", "rt-16", "at-rt-8", "at-rt-16"}
    names = {f"{recipe}/{part}" for recipe in ("two-stages", "two-stages-paper") for part in parts}
    assert found == names | {"instructions-0"}
    first = out / "instructions-0" / "stage-0" / "adapter"
    run = next(run for run in find_runs(out) if run.path.name == "at-rt-8")
    assert run.recipe.backbone.adapter == str(first.resolve())
    assert run.recipe.shots.count == 8
    assert run.recipe.seeds == (0, 1)


def test_the_page_holds_every_part_and_what_each_stage_changes(world):
    folder, _, page = world
    assert (folder / "out" / "report.md").read_text(encoding="utf-8") == page
    for row in (
        "| neither |",
        "| AT |",
        "| RT, 8 shots |",
        "| AT + RT, 16 shots |",
        "| like-rate |",
    ):
        assert page.count(row) >= 2, row
    first, second = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    pairs = {(d["system"], d["baseline"]) for d in first["differences"]}
    assert pairs == {
        ("AT", "neither"),
        *((f"RT, {k} shots", "neither") for k in (8, 16)),
        *((f"AT + RT, {k} shots", "AT") for k in (8, 16)),
        *((f"AT + RT, {k} shots", f"RT, {k} shots") for k in (8, 16)),
    }
    assert second["metadata"]["template"] == "paper"
    means = {s["name"]: s["metrics"]["auc"]["mean"] for s in first["systems"]}
    for d in first["differences"]:
        if d["metric"] == "auc":
            assert d["difference"] == pytest.approx(means[d["system"]] - means[d["baseline"]])
    assert (folder / "out" / "two-stages-paper.png").exists()


def test_a_part_that_was_cut_off_is_made_again_and_no_other(world):
    folder, recipes, page = world
    out = folder / "out"
    (out / "two-stages" / "rt-8" / "report.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("report.json")}
    said = []
    again = ablate(recipes, out, shots=[8, 16], seeds=[0, 1], data=folder / "data", say=said.append)
    assert again == page
    after = {path: path.stat().st_mtime_ns for path in out.rglob("report.json")}
    changed = {path for path in after if before.get(path) != after[path]}
    assert changed == {out / "report.json", out / "two-stages" / "rt-8" / "report.json"}
    assert not any("Tuning on" in line for line in said)


def test_a_recipe_without_a_stage_has_nothing_to_ablate(world, tmp_path):
    folder, recipes, _ = world
    options = {"seeds": [0], "data": folder / "data", "say": silent}
    with pytest.raises(ValueError, match="demo has not both kinds of stages"):
        ablate([load_recipe("demo")], tmp_path / "out", shots=[8], **options)
    with pytest.raises(ValueError, match="names of their own; got two-stages, two-stages"):
        ablate([recipes[0], recipes[0]], tmp_path / "out", shots=[8], **options)
    with pytest.raises(ValueError, match="at least one number of shots"):
        ablate(recipes, tmp_path / "out", shots=[0], **options)
    assert not (tmp_path / "out").exists()
