"""Every command of the docs runs, in order, as written.

Only the backbone is smaller: `tallrec tune` is given the tiny model, so that pages of commands take
seconds. `make demo` and `make test` are run by whoever installs the project.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page):
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line]


def files(page):
    """Files that a page shows: a name in backticks, then a block of their content."""
    pattern = r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```"
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["quickstart.md", "your-data.md"])
def test_the_commands_of_a_page_run_in_order(page, tiny_folder, tmp_path):
    path = ROOT / "docs" / page
    for name, content in files(path):
        (tmp_path / name).write_text(content, encoding="utf-8")
    ran = 0
    for line in commands(path):
        program, *arguments = shlex.split(line, comments=True)
        if program != "tallrec":
            assert program == "make"
            continue
        if arguments[0] == "tune":
            arguments += ["--backbone", str(tiny_folder), "--set", "backbone.dtype=float32"]
            arguments += ["--set", "stages.0.epochs=1"]
        done = subprocess.run(
            [sys.executable, "-m", "tallrec", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        ran += 1
    assert ran >= 3


def test_make_commands_of_the_docs_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = {
        line.split()[1] for page in PAGES for line in commands(page) if line.startswith("make ")
    }
    assert named
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_page_of_commands_is_fresh():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "commands.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
