"""What torch's libraries keep stays within bounds."""

import os
import subprocess
import sys

import pytest

from tallrec.llm.memory import _CACHES

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
