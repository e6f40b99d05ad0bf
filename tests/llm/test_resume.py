"""A tuning that is killed in the middle goes on to the very weights of one that was not."""

import multiprocessing
import shutil
import time

import pytest

from tallrec.llm.checkpoints import last_checkpoint
from tests.llm.tune_tiny import STEPS, tune_and_save, tune_tiny

# Processes come from one that has imported everything, so that each starts at once, and has started
# nothing: the threads of a Polars that has worked would be missing in its copies.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.llm.tune_tiny"])


def start(model_folder, folder, early_stopping):
    process = PROCESSES.Process(target=tune_and_save, args=(model_folder, folder, early_stopping))
    process.start()
    return process


def kill_when(process, condition):
    """Ends the process as `kill -9` does, as soon as the condition holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -9


def steps_logged(folder):
    log = folder / "metrics.jsonl"
    return log.read_text().count('"loss"') if log.exists() else 0


@pytest.fixture(scope="module", params=[False, True], ids=["all epochs", "early stopping"])
def undisturbed(request, tiny_folder, tmp_path_factory):
    """A run that nobody kills."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    tune_and_save(tiny_folder, folder, request.param)
    return folder, request.param


def assert_same_run(folder, undisturbed):
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()
    # The same figures too, each step once.
    assert (folder / "metrics.jsonl").read_text() == (undisturbed / "metrics.jsonl").read_text()
    assert steps_logged(folder) == STEPS


def finish(tiny_folder, folder, early_stopping):
    process = start(tiny_folder, folder, early_stopping)
    process.join(120)
    assert process.exitcode == 0


def test_killed_again_and_again(undisturbed, tiny_folder, tmp_path):
    """Before any checkpoint, in an epoch, while a checkpoint is written, near the end."""
    expected, early_stopping = undisturbed
    folder, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    for condition in (
        lambda: steps_logged(folder) >= 1,
        lambda: steps_logged(folder) >= 8 and last_checkpoint(checkpoints),
        (checkpoints / "checkpoint-12").exists,
        lambda: steps_logged(folder) >= 17,
    ):
        kill_when(start(tiny_folder, folder, early_stopping), condition)
        assert not (folder / "adapter").exists()
    finish(tiny_folder, folder, early_stopping)
    assert_same_run(folder, expected)


@pytest.mark.parametrize("damage", ["missing", "cut off", "empty"])
def test_a_newest_checkpoint_that_is_cut_off_is_passed_over(
    undisturbed, tiny_folder, tmp_path, damage
):
    expected, early_stopping = undisturbed
    folder = tmp_path / "run"
    kill_when(start(tiny_folder, folder, early_stopping), lambda: steps_logged(folder) >= 14)
    whole = last_checkpoint(folder / "checkpoints")
    state = whole / "trainer_state.json"
    if damage == "missing":
        state.unlink()
    else:
        state.write_text(state.read_text()[:500] if damage == "cut off" else "")
    older = last_checkpoint(folder / "checkpoints")
    assert older is not None
    assert int(older.name.split("-")[1]) < int(whole.name.split("-")[1])
    finish(tiny_folder, folder, early_stopping)
    assert_same_run(folder, expected)


def test_a_run_that_is_through_stays_as_it_is(undisturbed, tiny_folder, tmp_path):
    """Killed between its last checkpoint and its adapter; stopped early, it does not go on."""
    expected, early_stopping = undisturbed
    folder = shutil.copytree(expected, tmp_path / "run")
    shutil.rmtree(folder / "adapter")
    tune_and_save(tiny_folder, folder, early_stopping)
    assert_same_run(folder, expected)


@pytest.fixture(scope="module")
def undisturbed_log(tiny_folder, tmp_path_factory):
    return tune_tiny(tiny_folder, tmp_path_factory.mktemp("log"), micro_batch=2)[2]


@pytest.mark.parametrize("stop", range(1, STEPS + 1, 3))
def test_any_step_can_be_the_last_before_a_break(undisturbed_log, tiny_folder, tmp_path, stop):
    """Ctrl-C at any step: order of the rows and dropout go on where they were."""

    def interrupt(done, _total, _note):
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_tiny(tiny_folder, tmp_path, micro_batch=2, on_progress=interrupt)
    assert tune_tiny(tiny_folder, tmp_path, micro_batch=2)[2] == undisturbed_log


def test_no_checkpoint(tmp_path):
    assert last_checkpoint(tmp_path / "nothing") is None
    (tmp_path / "checkpoint-3").mkdir()
    assert last_checkpoint(tmp_path) is None
