"""A real llama.cpp server for tests, and a few questions for it."""

import subprocess
import sys
from contextlib import contextmanager

from tests.planted import planted_splits

KEY = "sk-secret-of-the-tests"
KEY_VARIABLE = "TALLREC_TEST_KEY"


@contextmanager
def llama_server(*model):
    """The address of a server of its own process that wants `KEY`; of SmolLM2 or a GGUF file."""
    command = [sys.executable, "-m", "tests.baselines.llama_server", KEY, *map(str, model)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def few_questions(n=6):
    """Short ones, of users with different histories."""
    return planted_splits(history=3).test[[i * 17 for i in range(n)]]
