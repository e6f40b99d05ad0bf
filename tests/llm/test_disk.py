"""A disk that fills up or turns read-only while tuning: one sentence, and nothing is lost."""

import shutil
import subprocess
from contextlib import suppress

import pytest
from safetensors.torch import load_file

from tallrec.llm.checkpoints import last_checkpoint
from tallrec.llm.tuning import TuningError
from tests.llm.test_tuning import same, weights
from tests.llm.tune_tiny import tune_tiny


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
    if not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a small, real disk needs root; one test here needs none")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk):
    with suppress(OSError), (disk / "ballast").open("wb", 0) as file:
        while True:  # until there is no space
            file.write(bytes(4096))


def turn_read_only(disk):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


def mend(disk):
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    (disk / "ballast").unlink(missing_ok=True)


def stand_in_the_way(folder):
    """What needs no disk and no root: links to nowhere, where the next checkpoints would be."""
    for step in range(10, 100):
        (folder / "run" / "checkpoints" / f"checkpoint-{step}").symlink_to(folder / "no" / "where")


def test_a_checkpoint_that_cannot_be_written_costs_nothing_before_it(tiny_folder, tmp_path):
    def at_nine(done, *_):
        if done == 9:
            stand_in_the_way(tmp_path)

    with pytest.raises(TuningError, match=f"cannot be written to {tmp_path}.*make room"):
        tune_tiny(tiny_folder, tmp_path / "run", on_progress=at_nine)
    kept = last_checkpoint(tmp_path / "run" / "checkpoints")
    assert kept is not None
    assert load_file(kept / "adapter_model.safetensors")
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        if file.is_symlink():
            file.unlink()
    _, model, log = tune_tiny(tiny_folder, tmp_path / "run")
    _, undisturbed, expected = tune_tiny(tiny_folder, tmp_path / "undisturbed")
    assert same(weights(model), weights(undisturbed))
    assert log == expected


@pytest.mark.parametrize("harm", [fill, turn_read_only])
def test_the_last_checkpoint_stays_and_is_gone_on_from(tiny_folder, tmp_path, disk, harm):
    def at_nine(done, *_):
        if done == 9:
            harm(disk)

    with pytest.raises(TuningError, match=f"cannot be written to {disk}.*make room") as raised:
        tune_tiny(tiny_folder, disk / "run", on_progress=at_nine)
    assert "\n" not in str(raised.value)
    kept = last_checkpoint(disk / "run" / "checkpoints")
    assert kept is not None
    assert load_file(kept / "adapter_model.safetensors")
    mend(disk)
    _, model, log = tune_tiny(tiny_folder, disk / "run")
    _, undisturbed, expected = tune_tiny(tiny_folder, tmp_path / "undisturbed")
    assert same(weights(model), weights(undisturbed))
    assert log == expected
