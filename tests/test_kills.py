"""Killed at any moment of both stages, a run goes on and ends in the same weights."""

import multiprocessing
import random
import time

import pytest

from tallrec.data.prepared import write_prepared
from tests.planted import planted_splits, write_instructions
from tests.test_pipeline import INFO
from tests.two_stages import tune_both

# Processes come from one that has imported everything and started nothing.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.two_stages", "tallrec.llm.tuning"])
CHAINS, KILLS = 4, 6
ADAPTERS = ("stage-0", "seed-0", "seed-1")


def start(world, model, name):
    process = PROCESSES.Process(target=tune_both, args=(world, model, name))
    process.start()
    return process


def finish(world, model, name):
    process = start(world, model, name)
    process.join(120)
    assert process.exitcode == 0


def files(run):
    """What must not differ: weights, and each step once in the logs."""
    names = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "metrics.jsonl")
    return {
        f"{folder}/{name}": (run / folder / name).read_bytes()
        for folder in ADAPTERS
        for name in names
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_folder):
    """Data, an undisturbed run, and how long such a run takes."""
    folder = tmp_path_factory.mktemp("kills")
    write_prepared(folder / "data", planted_splits(), INFO)
    write_instructions(folder / "general.json", 12)
    finish(folder, tiny_folder, "warm-up")
    began = time.monotonic()
    finish(folder, tiny_folder, "undisturbed")
    return folder, time.monotonic() - began


@pytest.mark.parametrize("seed", range(CHAINS))
def test_killed_at_random_moments(world, tiny_folder, seed):
    folder, seconds = world
    rng = random.Random(seed)  # noqa: S311 - no secret
    kills = runs = 0
    while kills < KILLS:
        process = start(folder, tiny_folder, f"killed-{seed}-{runs}")
        process.join(rng.uniform(0, seconds))
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
        else:  # it came to its end between two kills: the next ones are another run's
            assert process.exitcode == 0
            assert files(folder / f"killed-{seed}-{runs}") == files(folder / "undisturbed")
            runs += 1
    finish(folder, tiny_folder, f"killed-{seed}-{runs}")
    assert files(folder / f"killed-{seed}-{runs}") == files(folder / "undisturbed")


@pytest.mark.parametrize("stage", ADAPTERS)
@pytest.mark.parametrize("what", ["checkpoints/checkpoint-3", "adapter.new", "tuning.json"])
def test_killed_while_saving(world, tiny_folder, stage, what):
    folder, _ = world
    name = f"saving-{stage}-{what.split('/')[0]}"
    process = start(folder, tiny_folder, name)
    end = time.monotonic() + 60
    while not (folder / name / stage / what).exists():
        assert process.is_alive()
        assert time.monotonic() < end
        time.sleep(0.0005)
    process.kill()
    process.join()
    finish(folder, tiny_folder, name)
    assert files(folder / name) == files(folder / "undisturbed")
