"""Memory of tuning on a CPU: what `tallrec plan` estimates beside what the system counts.

Each setting is tuned for two steps in a process of its own, whose peak of resident memory the
system tells. Rows are random tokens, which share nothing, all of the same length. `needed` is the
peak if each large tensor is given back to the system when it is freed; `kept` is that of tallrec as
it is, which keeps freed memory for the next tensor, as that is faster, and loses some in between.

    python benchmarks/memory.py [--tokens 256]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tallrec.assets import fetch
from tallrec.llm import backbone as backbones
from tallrec.llm.adapter import attach_lora
from tallrec.llm.backbone import load_backbone
from tallrec.llm.estimate import Setup, tuning_memory
from tallrec.llm.shape import read_shape
from tallrec.llm.tuning import TuningOptions, tune
from tallrec.prompts.answers import Answers, TokenRow

RANK, TARGETS, DROPOUT = 8, ("q_proj", "v_proj"), 0.05
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
SETTINGS = [
    (dtype, checkpointing, micro, loss)
    for dtype in ("float32", "bfloat16")
    for loss, checkpointing, micro in (
        ("answers", False, 2),
        ("answers", False, 8),
        ("answers", True, 8),
        ("all-tokens", False, 4),
    )
]


def measure(dtype: str, checkpointing: bool, micro: int, loss: str, tokens: int) -> int:
    """Peak of resident memory of this process after two steps of tuning, in bytes."""
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        backbones.keep_freed_memory = lambda: None  # it would overrule that
    backbone = load_backbone(fetch("smollm2-135m"), dtype=dtype, device="cpu")
    model = attach_lora(backbone, rank=RANK, targets=TARGETS, dropout=DROPOUT)
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 20000, (2 * micro, tokens)).tolist()
    places = list(range(tokens // 10, tokens - 1, tokens // 10))
    rows = [TokenRow(row, places, [bool(p % 2) for p in places]) for row in ids]
    options = TuningOptions(
        epochs=1,
        batch_size=micro,
        micro_batch=micro,
        loss=loss,
        gradient_checkpointing=checkpointing,
    )
    with tempfile.TemporaryDirectory() as folder:
        tune(model, rows, Answers(5, 9), options, folder=Path(folder))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def estimate(dtype: str, checkpointing: bool, micro: int, loss: str, tokens: int) -> float:
    """The same by arithmetic."""
    return tuning_memory(
        read_shape(str(fetch("smollm2-135m"))),
        Setup(dtype, "none", 1, RANK, TARGETS),
        rows=micro,
        tokens=tokens,
        loss=loss,
        checkpointing=checkpointing,
    ).total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--one", help="a setting as JSON: measure it in this process")
    given = parser.parse_args()
    if given.one:
        print(measure(*json.loads(given.one), tokens=given.tokens))
        return
    print("| dtype | loss | checkpointing | micro_batch | estimate | needed | ratio | kept |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for setting in SETTINGS:
        command = [sys.executable, __file__, "--tokens", str(given.tokens)]
        command += ["--one", json.dumps(setting)]
        needed, kept = (
            int(subprocess.run(command, stdout=subprocess.PIPE, check=True, env=env).stdout)
            for env in (os.environ | GIVEN_BACK, os.environ)
        )
        estimated = estimate(*setting, tokens=given.tokens)
        dtype, checkpointing, micro, loss = setting
        print(
            f"| {dtype} | {loss} | {'yes' if checkpointing else 'no'} | {micro} "
            f"| {estimated / 1e9:.2f} GB | {needed / 1e9:.2f} GB | {estimated / needed:.2f} "
            f"| {kept / 1e9:.2f} GB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
