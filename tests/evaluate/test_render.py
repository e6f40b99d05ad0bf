import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from tallrec.evaluate import COUNTING, System, summarize, to_markdown, to_table, write_report
from tallrec.evaluate.plots import figures
from tests.evaluate.cases import make_evaluation


@pytest.fixture(scope="module")
def evaluation():
    return make_evaluation()


@pytest.fixture(scope="module")
def result(evaluation):
    return summarize(evaluation, resamples=100)


def text_of(table, width=120):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_markdown_shows_figures_and_explains_them(result):
    page = to_markdown(result)
    auc = result["systems"][0]["metrics"]["auc"]
    assert f"| tuned | {auc['mean']:.3f} [{auc['low']:.3f},{auc['high']:.3f}] |" in page
    assert f"{auc['sd']:.3f}/" in page
    assert "| chance (a coin) | 0.500 | 0.500 | 0.693 |" in page
    assert "(40 with both likes and dislikes)" in page
    assert "**GAUC** asks the same within each user" in page
    assert "100 bootstrap resamples" in page
    assert "| tuned | AUC | like-rate | +" in page
    assert "- test_hash: 1234\n- shots: 64\n" in page


def test_markdown_warns(evaluation):
    counted = replace(evaluation, systems=evaluation.systems[1:])
    weak = System("weak", "model", np.zeros((1, 800)))
    page = to_markdown(summarize(replace(counted, systems=(weak, *counted.systems)), resamples=50))
    assert "> **Warning:** weak does not beat the best counting baseline" in page


def test_table_shows_every_system_and_chance(result):
    text = text_of(to_table(result))
    auc = result["systems"][0]["metrics"]["auc"]
    assert f"{auc['mean']:.3f} [{auc['low']:.3f},{auc['high']:.3f}]" in text
    assert "spread" in text
    for name in ("tuned", "like-rate", "item mean", "chance"):
        assert name in text


def test_table_fits_a_narrow_terminal(result):
    auc = result["systems"][0]["metrics"]["auc"]
    text = text_of(to_table(result), width=80)
    assert f"[{auc['low']:.3f},{auc['high']:.3f}]" in text
    assert "…" not in text


def test_spread_is_shown_only_where_there_are_seeds(evaluation):
    systems = tuple(replace(s, scores=s.scores[:1]) for s in evaluation.systems)
    result = summarize(replace(evaluation, systems=systems), resamples=50)
    assert "spread (" not in to_markdown(result)
    assert "spread" not in text_of(to_table(result))


def test_undefined_figures_are_na(evaluation):
    result = summarize(replace(evaluation, labels=np.ones(800, dtype=bool)), resamples=50)
    assert "| tuned | n/a | n/a | " in to_markdown(result)
    assert "n/a" in text_of(to_table(result))


def test_a_name_cannot_break_the_table(evaluation):
    odd = System("a|b\n[red]c", COUNTING, np.zeros((1, 800)))
    result = summarize(replace(evaluation, systems=(odd,)), resamples=50)
    assert "| a\\|b [red]c | 0.500" in to_markdown(result)
    assert "[red]c" in text_of(to_table(result))


def test_nested_metadata_is_a_nested_list(evaluation):
    metadata = {"seeds": [0, 1], "recipe": {"rate": 0.001}}
    page = to_markdown(summarize(replace(evaluation, metadata=metadata), resamples=50))
    assert "- seeds: [0, 1]\n- recipe:\n  - rate: 0.001\n" in page


def test_report_files(tmp_path, evaluation, result):
    directory = tmp_path / "runs" / "one"
    files = write_report(directory, result, figures(evaluation))
    assert [file.name for file in files] == [
        "report.json",
        "roc.png",
        "calibration.png",
        "report.md",
    ]
    assert sorted(directory.iterdir()) == sorted(files)
    assert json.loads((directory / "report.json").read_text()) == result
    assert "![ROC](roc.png)" in (directory / "report.md").read_text()
    for name in ("roc.png", "calibration.png"):
        assert (directory / name).read_bytes().startswith(b"\x89PNG\r\n")


def test_an_earlier_report_is_replaced(tmp_path, result):
    (tmp_path / "report.md").write_text("earlier")
    files = write_report(tmp_path, result)
    assert [file.name for file in files] == ["report.json", "report.md"]
    assert "earlier" not in (tmp_path / "report.md").read_text()
    assert "## Plots" not in (tmp_path / "report.md").read_text()


def test_a_failed_write_leaves_the_earlier_file(tmp_path, result):
    (tmp_path / "report.json").mkdir()
    (tmp_path / "report.md").write_text("old")
    with pytest.raises(OSError, match=r"report\.json"):
        write_report(tmp_path, result)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]
    assert (tmp_path / "report.md").read_text() == "old"
