"""`tallrec in-context` as a user runs it: a local backbone, and a server that fails on the way."""

import json
import signal
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from tallrec.data.prepared import PreparedInfo, write_prepared
from tallrec.steps import in_context as step
from tallrec.steps.evaluate import compare_runs
from tallrec.steps.in_context import in_context
from tests.baselines.endpoints import KEY, KEY_VARIABLE, llama_server
from tests.baselines.faulty_proxy import proxy_of
from tests.planted import planted_splits
from tests.test_cli import tallrec, wait_until

ROWS = 8


def silent(_line):
    """Says nothing."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "data"
    info = PreparedInfo("planted", "movie", "users", 3, 3, 3.0, 0)
    write_prepared(folder, planted_splits(history=3), info)
    return folder


def locally(data, out, model, **options):
    options = {"template": "timeline", "shots": (0, 2), "seeds": (0, 1)} | options
    return in_context(data, out, str(model), rows=40, resamples=50, say=silent, **options)


def test_a_local_backbone_beside_counting(data, tiny_folder, tmp_path, monkeypatch):
    result = locally(data, tmp_path / "out", tiny_folder)
    zero_shot, two_shots, *counting = result["systems"]
    assert zero_shot["name"] == f"{tiny_folder}, timeline, zero-shot"
    assert two_shots["name"] == f"{tiny_folder}, timeline, 2 shots"
    assert [system["name"] for system in counting] == [
        "like-rate",
        "item mean",
        "like-rate + item mean",
    ]
    assert len(two_shots["metrics"]["auc"]["per_seed"]) == 2
    assert two_shots["answers"]["by_log_probability"] == two_shots["answers"]["asked"] == 80
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "| share of Yes, by score |" in page

    def fail(*_arguments, **_more):
        raise AssertionError("there is nothing left to compute")

    monkeypatch.setattr(step, "load_backbone", fail)
    assert locally(data, tmp_path / "out", tiny_folder) == result


def test_more_rows_include_fewer(data, tiny_folder, tmp_path):
    names = ["user", "item"]
    for rows in (10, 30):
        in_context(data, tmp_path / str(rows), str(tiny_folder), shots=(0,), rows=rows, say=silent)
    few, many = (
        pl.read_parquet(tmp_path / rows / "0-shots-seed-0.parquet") for rows in ("10", "30")
    )
    joined = few.join(many, on=names, how="left")
    np.testing.assert_allclose(joined["log_odds"], joined["log_odds_right"], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "mine"}, "no template 'mine'"),
        ({"shots": (-1,)}, "shots must be numbers"),
        ({"seeds": ()}, "at least one seed"),
        ({"part": "train"}, "examples come from the train part"),
        ({"shots": (40,)}, "after its 40 examples, but .* takes 512: give fewer --shots"),
    ],
)
def test_a_wrong_option_is_refused(data, tiny_folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        locally(data, tmp_path / "out", tiny_folder, **options)


def test_a_folder_is_about_one_model(data, tiny_folder, tmp_path):
    locally(data, tmp_path / "out", tiny_folder, shots=(0,))
    with pytest.raises(ValueError, match=r"report on another template \(timeline instead of"):
        locally(data, tmp_path / "out", tiny_folder, shots=(0,), template="paper")


def test_reports_on_the_same_rows_compare(data, tiny_folder, tmp_path):
    folders = [tmp_path / template for template in ("timeline", "paper")]
    for folder in folders:
        locally(data, folder, tiny_folder, shots=(0,), template=folder.name)
    compared = compare_runs(folders, tmp_path / "both")
    asked = [system["name"] for system in compared["systems"] if "answers" in system]
    assert asked == ["timeline", "paper"]
    assert "## Answers" in (tmp_path / "both" / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def proxy():
    with llama_server() as upstream, proxy_of(upstream) as running:
        yield running


@pytest.fixture
def command(data, proxy, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    proxy.forget()
    options = ["--base-url", proxy.url, "--key-variable", KEY_VARIABLE, "--rows", ROWS]
    options += ["--template", "timeline", "--shots", "0", "--concurrency", 1]
    return ["in-context", data, "--model", "smollm2", *options, "--out", "out"]


def begin(command, cwd):
    words = [sys.executable, "-m", "tallrec", *map(str, command)]
    return subprocess.Popen(words, cwd=cwd, stderr=subprocess.PIPE, text=True)


def test_refused_killed_and_stopped_every_answer_is_paid_once(command, proxy, tmp_path):
    answers = tmp_path / "out" / "answers.jsonl"

    def kept():
        return len(answers.read_bytes().splitlines()) if answers.exists() else 0

    proxy.forget(lambda number, _body: "no_money" if number == 2 else None)
    refused = tallrec(*command, cwd=tmp_path)
    assert refused.returncode == 2
    assert "You exceeded your current quota" in refused.stderr.splitlines()[-1]
    assert kept() == 2

    proxy.forget(lambda number, _body: "hang" if number == 2 else None)
    with begin(command, tmp_path) as process:
        wait_until(lambda: len(proxy.requests) == 3)
        process.kill()
    assert kept() == 4
    with answers.open("ab") as file:
        file.write(b'{"key": "cut o')  # as if it had been killed while writing

    proxy.forget(lambda number, _body: "hang" if number >= 2 else None)
    with begin(command, tmp_path) as process:
        wait_until(lambda: len(proxy.requests) == 3)
        process.send_signal(signal.SIGINT)
        proxy.released.set()  # the question on its way fails, and must not be asked again for long
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "This goes on from the last answer:\n  tallrec in-context" in said
    assert "Traceback" not in said
    assert kept() == 6

    proxy.forget()
    finished = tallrec(*command, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert len(proxy.requests) == 2
    assert kept() == ROWS
    again = tallrec(*command, cwd=tmp_path)
    assert again.stdout == finished.stdout
    assert len(proxy.requests) == 2
    result = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert result["systems"][0]["answers"]["asked"] == ROWS
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()


def test_either_an_endpoint_or_a_backbone(command, tmp_path):
    both = tallrec(*command, "--backbone", "smollm2-135m", cwd=tmp_path)
    assert both.returncode == 2
    assert "either --model, of an endpoint, or --backbone" in both.stderr
