"""What torch's libraries keep stays within bounds."""

import subprocess
import sys

import pytest

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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch is built with other libraries")
def test_batches_of_ever_new_shapes_do_not_cost_memory(tiny_folder):
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tiny_folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout.splitlines()[-1]) < 60e6
