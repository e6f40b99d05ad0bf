"""The paper's tables: runs are shared by all of them, made once, and shown beside the paper's."""

import json
from dataclasses import replace

import polars as pl
import pytest
from typer.testing import CliRunner

from tallrec.cli import app
from tallrec.data.prepared import write_prepared
from tallrec.run import find_runs
from tallrec.steps.cross_domain import cross_domain
from tallrec.steps.icl_table import in_context_table
from tallrec.steps.paper_tables import ablation, table_1
from tallrec.steps.reproduction import Reproduction, domain_folders
from tests.planted import planted_splits, write_instructions
from tests.test_ablation import recipe_of
from tests.test_pipeline import INFO, silent

INSTRUCTIONS, MOVIE, BOOK = "instructions-0", "movie/two-stages", "book/two-stages"


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_folder):
    """Two domains, and all tables of them in one folder."""
    folder = tmp_path_factory.mktemp("reproduce")
    write_prepared(folder / "movies", planted_splits(users=24), INFO)
    books = replace(INFO, dataset="tales", domain="book")
    write_prepared(folder / "books", planted_splits(users=24, seed=1), books)
    write_instructions(folder / "general.json", 4)
    recipe = recipe_of("two-stages", folder, tiny_folder, "stages.0.count=4")
    folders = {"movie": folder / "movies", "book": folder / "books"}

    def reproduction(*, instructed=True, shots=(4,), say=silent):
        return Reproduction(folder / "out", [recipe], folders, shots, (0, 1), instructed, say)

    pages = {
        "table1": table_1(reproduction()),
        "ablation": ablation(reproduction()),
        "cross-domain": cross_domain(reproduction()),
    }
    return folder, reproduction, pages


def test_tables_share_their_runs(world):
    folder, _, _ = world
    out = folder / "out"
    found = {str(run.path.relative_to(out)) for run in find_runs(out)}
    parts = ("neither", "at", "rt-4", "at-rt-4")
    own = {f"{domain}/{part}" for domain in (MOVIE, BOOK) for part in parts}
    assert found == own | {INSTRUCTIONS, "movie+book/two-stages/at-rt-4"}


def test_table_1_holds_the_paper_beside_every_system(world):
    folder, _, pages = world
    assert (folder / "out" / "table1" / "report.md").read_text(encoding="utf-8") == pages["table1"]
    table = pl.read_csv(folder / "out" / "table1" / "report.csv")
    names = set(table["system"])
    assert {"gru4rec", "caser", "sasrec", "dros", "gru-bert", "dros-bert", "like-rate"} < names
    assert {"model, timeline, RT", "model, timeline, AT + RT"} < names
    assert set(table["domain"]) == {"movie", "book"}
    assert table["paper"].null_count() == table.height  # the paper has no figure for 4 shots
    assert {path.name for path in (folder / "out" / "table1").glob("*.png")} == {
        "movie.png",
        "book.png",
    }


def test_published_figures_stand_in_their_columns(world):
    _, reproduction, _ = world
    page = table_1(reproduction(instructed=False, shots=(16,)))
    row = next(line for line in page.splitlines() if line.startswith("| gru4rec |"))
    assert row.split("|")[2].strip() == "0.491"
    own = next(line for line in page.splitlines() if line.startswith("| TALLRec, LLaMA-7B |"))
    assert [cell.strip() for cell in own.split("|")[2:4]] == ["0.672", "n/a"]


def test_the_ablation_has_a_page_for_each_domain_too(world):
    folder, _, pages = world
    for stages in ("neither", "AT", "RT", "AT + RT"):
        assert f"| model, timeline, {stages} |" in pages["ablation"]
    for domain in ("movie", "book"):
        page = (folder / "out" / "ablation" / domain / "report.md").read_text(encoding="utf-8")
        assert "### What a stage changes" in page
        assert f"({domain}/report.md)" in pages["ablation"]


def test_the_matrix_tests_every_domain_on_every_domain(world):
    folder, _, pages = world
    results = json.loads((folder / "out" / "cross-domain" / "report.json").read_text())
    assert [result["domain"] for result in results] == ["movie", "book"]
    for result in results:
        models = [s["name"] for s in result["systems"] if s["kind"] == "model"]
        tuned_on = ("not tuned", "movie", "book", "movie + book")
        assert sorted(models) == sorted(f"model, timeline, {what}" for what in tuned_on)
    on_books = folder / "out" / MOVIE / "at-rt-4" / "on-book" / "seed-1" / "scores.parquet"
    assert pl.read_parquet(on_books).height == results[1]["data"]["rows"]
    assert "Tested on books" in pages["cross-domain"]


def test_mixed_shots_come_from_both_domains_in_equal_numbers(world):
    folder, _, _ = world
    mixed = folder / "out" / "movie+book" / "two-stages" / "at-rt-4" / "seed-0"
    own = folder / "out" / MOVIE / "at-rt-4" / "seed-0"
    rows = [json.loads((path / "tuning.json").read_text())["rows"] for path in (mixed, own)]
    assert rows == [4, 4]
    weights = [
        (path / "adapter" / "adapter_model.safetensors").read_bytes() for path in (mixed, own)
    ]
    assert weights[0] != weights[1]


def test_what_is_there_is_not_made_again(world):
    _, reproduction, pages = world
    said = []
    assert table_1(reproduction(say=said.append)) == pages["table1"]
    assert cross_domain(reproduction(say=said.append)) == pages["cross-domain"]
    assert not any("Tuning on" in line for line in said)


def test_a_local_model_is_asked_in_every_domain_and_template(world, tiny_folder):
    folder, _, _ = world
    page = in_context_table(
        {"movie": folder / "movies", "book": folder / "books"},
        folder / "out",
        str(tiny_folder),
        templates=("paper", "timeline"),
        shots=(0,),  # the tiny model has no room for examples
        seeds=(0,),
        rows=20,
        say=silent,
    )
    for template in ("paper", "timeline"):
        assert f", {template}, zero-shot |" in page
        assert (folder / "out" / "icl" / "book" / f"model-{template}" / "report.md").is_file()
    assert page.count("- movies: 20 test samples") == page.count("- books: 20 test samples") == 1


def test_commands_find_the_same_runs(world, tiny_folder):
    folder, _, pages = world
    given = ["--data", folder / "movies", "--data", folder / "books", "--backbone", tiny_folder]
    given += ["--recipes", "two-stages", "--instructions", folder / "general.json"]
    given += ["--shots", "4", "--seeds", "0,1", "--out", folder / "out"]
    for setting in ("backbone.dtype=float32", "shots.orders=1", "evaluation.resamples=200"):
        given += ["--set", setting]
    given += ["--set", "stages.0.count=4"]
    for name, page in pages.items():
        result = CliRunner().invoke(app, ["reproduce", name, *map(str, given)])
        assert result.exit_code == 0, result.output
        assert result.stdout.split() == page.split()
        assert "Tuning on" not in result.stderr


def test_a_command_asks_a_local_model(world, tiny_folder):
    folder, _, _ = world
    given = ["--data", folder / "movies", "--backbone", tiny_folder, "--out", folder / "asked"]
    given += ["--shots", "0", "--templates", "timeline", "--rows", "20"]
    result = CliRunner().invoke(app, ["reproduce", "icl", *map(str, given)])
    assert result.exit_code == 0, result.output
    page = (folder / "asked" / "icl" / "report.md").read_text(encoding="utf-8")
    assert result.stdout.split() == page.split()


def test_what_cannot_be_reproduced_is_said(world, tmp_path, tiny_folder):
    folder, reproduction, _ = world
    with pytest.raises(ValueError, match="give --instructions FILE"):
        ablation(reproduction(instructed=False))
    with pytest.raises(ValueError, match="one number of shots"):
        cross_domain(reproduction(shots=(4, 8)))
    one = replace(reproduction(), folders={"movie": folder / "movies"})
    with pytest.raises(ValueError, match="transfer needs two domains"):
        cross_domain(one)
    with pytest.raises(ValueError, match="at least one number of shots"):
        reproduction(shots=())
    recipe = recipe_of("two-stages", folder, tiny_folder)
    with pytest.raises(ValueError, match="both of the domain 'movie'"):
        domain_folders([folder / "movies", folder / "movies"], tmp_path, recipe)
