"""Several processes, started by torchrun, tune what one process tunes; one that dies ends all."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from safetensors.torch import load_file

from tallrec.data.prepared import write_prepared
from tallrec.llm.shares import Shares
from tallrec.llm.trainer import TuningError
from tallrec.llm.tuning import TuningOptions, micro_batch_of
from tallrec.recipe_files import load_recipe
from tallrec.steps.tune import tune_recipe
from tests.planted import planted_splits, write_instructions
from tests.test_pipeline import INFO, silent

# Lengths that leave a short step at the end of an epoch, and a process without rows in it.
RECIPE = """
[backbone]
source = "{model}"
dtype = "float32"
device = "cpu"
[shots]
count = 28
validation = "shots"
[lora]
dropout = 0.0
[[stages]]
data = "instructions"
source = "{folder}/general.json"
epochs = 2
batch_size = 4
micro_batch = 4
[[stages]]
data = "shots"
epochs = 3
batch_size = 8
micro_batch = 2
gradient_checkpointing = true
[evaluation]
resamples = 100
"""
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tallrec")


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_folder):
    """Data, a recipe, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("processes")
    write_prepared(folder / "data", planted_splits(users=24), INFO)
    write_instructions(folder / "general.json", 9)
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(model=tiny_folder, folder=folder), encoding="utf-8")
    tune_recipe(load_recipe(str(recipe)), folder / "one", data=folder / "data", say=silent)
    return folder


def start(world, command, out, *more):
    return subprocess.Popen(
        [sys.executable, *LAUNCHER, command, "recipe.toml", "--out", out, "--data", "data", *more],
        cwd=world,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    try:
        _, said = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 0, said
    return said


def weights(run):
    return {
        f"{stage}/{name}": tensor
        for stage in ("stage-0", "seed-0")
        for name, tensor in load_file(run / stage / "adapter/adapter_model.safetensors").items()
    }


def log(run, stage):
    return [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(run, one):
    ours, theirs = weights(run), weights(one)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 1e-5
    for stage in ("stage-0", "seed-0"):
        for mine, other in zip(log(run, stage), log(one, stage), strict=True):
            assert mine["step"] == other["step"]
            for figure in {"loss", "eval_auc"} & other.keys():
                assert mine[figure] == pytest.approx(other[figure], abs=1e-5)


def test_two_processes_that_share_the_weights_do_too(world):
    said = finish(start(world, "tune", "sharded", "--set", "backbone.shard=fsdp"))
    assert_same_run(world / "sharded", world / "one")
    assert "instead" not in said  # rows share prefixes there too


def test_two_processes_tune_what_one_does_even_if_one_is_killed(world):
    run = world / "killed"
    launcher = start(world, "run", "killed")
    metrics = run / "seed-0" / "metrics.jsonl"
    end = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count('"loss"') >= 4):
        assert launcher.poll() is None
        assert time.monotonic() < end
        time.sleep(0.001)
    (second,) = (
        process
        for process in psutil.Process(launcher.pid).children()
        if process.environ()["RANK"] == "1"
    )
    second.kill()
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert (
        "Signal 9 (SIGKILL) received by PID" in said or "goes on from the last checkpoint" in said
    )
    assert not (run / "seed-0" / "adapter").exists()
    said = finish(start(world, "run", "killed"))
    assert_same_run(run, world / "one")
    assert json.loads((run / "run.json").read_text())["processes"] == 2
    assert (run / "report.md").exists()
    assert said.count("Tuning on 21 rows") == said.count("Loading") - 1 == 1  # each line once


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 7, 12, 29])
def test_shares_are_the_steps_of_one_process(rows, processes):
    shares = [
        Shares(n_rows=rows, batch_size=12, micro_batch=1, seed=3, rank=rank, processes=processes)
        for rank in range(processes)
    ]
    (alone,) = (Shares(n_rows=rows, batch_size=12, micro_batch=12, seed=3, rank=0, processes=1),)
    for epoch in (0, 1):
        for share in (*shares, alone):
            share.set_epoch(epoch)
        dealt = [list(share) for share in shares]
        assert {len(mine) for mine in dealt} == {len(shares[0])}  # all take as many passes
        passes = 12 // processes
        steps = [
            sorted(i for mine in dealt for batch in mine[start : start + passes] for i in batch)
            for start in range(0, len(shares[0]), passes)
        ]
        assert steps == [sorted(step) for step in alone]


def test_processes_share_a_batch_equally_or_are_told_how_many_can():
    options = TuningOptions(batch_size=12, micro_batch=4)
    assert [micro_batch_of(options, n) for n in (1, 2, 3, 4, 6, 12)] == [4, 3, 4, 3, 2, 1]
    with pytest.raises(TuningError, match=r"5 processes cannot share.* of 12.*start 1, 2, 3,"):
        micro_batch_of(options, 5)


def test_commands_that_work_alone_refuse_company():
    env = {**os.environ, "RANK": "0", "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tallrec", "demo"]
    result = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 2
    assert "demo works in one process, but 2 were started" in result.stderr
