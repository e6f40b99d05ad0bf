"""A run directory: what a run wrote, and from which recipe, code and data.

runs/demo/
  recipe.toml        everything that decides what was computed
  run.json           code, libraries, machine, data hashes, backbone, command
  data/              the prepared folder, where the recipe made it
  stage-0/           one folder a stage on instructions, for all seeds: adapter/, metrics.jsonl
  seed-0/            one folder a seed: adapter/, metrics.jsonl, scores.parquet
  report.md, report.json, roc.png, calibration.png
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tallrec.files import write_atomically
from tallrec.recipe import Recipe

_LIBRARIES = ("torch", "transformers", "peft", "polars", "scikit-learn", "numpy")


@dataclass(frozen=True)
class RunDir:
    """A run's folder.

    Attributes:
        path: The folder.
        recipe: Its recipe.
    """

    path: Path
    recipe: Recipe

    @property
    def info(self) -> dict[str, Any]:
        """The content of `run.json`."""
        info: dict[str, Any] = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        return info

    def add(self, **facts: Any) -> None:
        """Adds facts to `run.json`."""
        text = json.dumps(self.info | facts, indent=2) + "\n"
        write_atomically(self.path / "run.json", text.encode())

    def seed(self, seed: int) -> Path:
        """The folder of one seed."""
        return self.path / f"seed-{seed}"

    def stage(self, number: int) -> Path:
        """The folder of a stage on instructions."""
        return self.path / f"stage-{number}"

    def adapter(self, seed: int) -> Path:
        """The adapter of a seed: its own or, without a stage on shots, the one all seeds share."""
        if self.recipe.shots_stage is None:
            return self.stage(len(self.recipe.stages) - 1) / "adapter"
        return self.seed(seed) / "adapter"

    @property
    def tuned(self) -> bool:
        """Whether every seed has its adapter."""
        return all(self.adapter(seed).is_dir() for seed in self.recipe.seeds)


def create_run(path: Path, recipe: Recipe) -> RunDir:
    """Makes a run directory, or continues an unfinished one of the same recipe.

    Raises:
        ValueError: If the folder holds a finished run, another recipe's, or something else.
    """
    if path.exists() and (path.is_file() or any(path.iterdir())):
        run = open_run(path)
        if run.recipe != recipe:
            raise ValueError(
                f"{path} is a run of another recipe: give another --out, or remove that folder"
            )
        if run.tuned:
            raise ValueError(
                f"{path} is finished and is not overwritten: look at it with 'tallrec evaluate "
                f"{path}', or give another --out"
            )
        return run
    path.mkdir(parents=True, exist_ok=True)
    facts = {
        "command": ["tallrec", *sys.argv[1:]],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "tallrec": version("tallrec"),
        "commit": _commit(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    write_atomically(path / "run.json", (json.dumps(facts, indent=2) + "\n").encode())
    write_atomically(path / "recipe.toml", recipe.to_toml().encode())
    return RunDir(path, recipe)


def open_run(path: Path) -> RunDir:
    """Opens a run directory.

    Raises:
        ValueError: If the folder is not one.
    """
    try:
        tree = tomllib.loads((path / "recipe.toml").read_text(encoding="utf-8"))
        run = RunDir(path, Recipe.model_validate(tree))
        run.info  # noqa: B018 - reading it is the check
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a run directory of tallrec: {reason}") from None
    return run


def free_path(path: Path) -> Path:
    """`path`, or `path-2`, `path-3`, ... if there is a finished run already."""
    candidate, number = path, 1
    while candidate.exists() and any(candidate.iterdir()) and open_run(candidate).tuned:
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _commit() -> str | None:
    """The commit of the code that runs, with a + if it has changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        text = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],  # noqa: S607 - user's git
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return text or None
