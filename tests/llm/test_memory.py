"""What torch's libraries keep stays within bounds."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from tallrec.llm.memory import _CACHES, page_out

_MEASURE = """
import random, sys
import psutil, torch
from tallrec.llm.backbone import load_backbone

load_backbone(sys.argv[1], dtype="bfloat16", device="cpu")
weight = torch.zeros(512, 512, dtype=torch.bfloat16)
memory = []
with torch.no_grad():
    for i, n in enumerate(random.Random(0).sample(range(1, 501), 450)):
        torch.nn.functional.linear(torch.zeros(n, 512, dtype=torch.bfloat16), weight)
        if i in (199, 449):
            memory.append(psutil.Process().memory_info().rss)
print(memory[1] - memory[0])
"""


def grown(folder, **environment):
    """Bytes by which the process grows over 250 shapes, when it has seen 200."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return int(done.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch is built with other libraries")
def test_batches_of_ever_new_shapes_do_not_cost_memory(tiny_folder):
    found = grown(tiny_folder)
    assert found < 60e6
    # How much a kernel takes depends on the processor.
    assert found < 0.8 * grown(tiny_folder, **dict.fromkeys(_CACHES, "1024"))


@pytest.fixture
def on_disk(tmp_path):
    """A folder whose files are not in memory themselves, as in many a /tmp."""
    for parent in (tmp_path, Path(__file__).parent):
        if file_system(parent) != "tmpfs":
            with TemporaryDirectory(dir=parent) as folder:
                yield Path(folder)
            return
    pytest.skip("the file is in memory itself")


def file_system(path):
    kinds = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next(kinds[str(p)] for p in (path, *path.parents) if str(p) in kinds)


def from_file():
    """Bytes in memory that are views of files."""
    return psutil.Process().memory_info().shared


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is given back")
def test_a_file_of_weights_is_left_and_read_again(on_disk):
    weights = {"small": torch.randn(3), "large": torch.randn(1 << 22)}
    save_file(weights, on_disk / "weights.safetensors")
    with (on_disk / "weights.safetensors").open("rb") as file:
        os.fsync(file.fileno())  # what is not on the disk yet cannot be left
    read = load_file(on_disk / "weights.safetensors")
    assert torch.equal(read["large"], weights["large"])
    before = from_file()
    page_out(read.values())
    assert before - from_file() > 15e6  # of 16.8
    for name, weight in weights.items():
        torch.testing.assert_close(read[name], weight, rtol=0, atol=0)


def test_what_comes_from_no_file_stays_in_memory():
    weight = torch.arange(1 << 20)
    weight[::7] = -1
    expected = weight.clone()
    page_out([weight, weight[:5]])
    assert torch.equal(weight, expected)
