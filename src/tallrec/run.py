"""A run directory: what a run wrote, and from which recipe, code and data.

runs/demo/
  recipe.toml        everything that decides what was computed
  run.json           command, code, libraries, machine, data hashes, backbone
  data/              the prepared folder, where the recipe made it
  stage-0/           one folder a stage on instructions, for all seeds: adapter/, metrics.jsonl
  seed-0/            one folder a seed: adapter/, metrics.jsonl, scores.parquet
  untuned.parquet    scores of the backbone without its adapters, where they are wanted
  report.md, report.json, roc.png, calibration.png

`stage-0/` and `seed-0/` also hold `tuning.json`, facts about how that adapter came to be.
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tallrec.files import locked_folder, whole_folder, write_atomically
from tallrec.recipe import Recipe
from tallrec.recipe_files import read_recipe

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
        write_atomically(self.path / "run.json", _json(self.info | facts))

    def seed(self, seed: int) -> Path:
        """The folder of one seed."""
        return self.path / f"seed-{seed}"

    def stage(self, number: int) -> Path:
        """The folder of a stage on instructions."""
        return self.path / f"stage-{number}"

    def adapter(self, seed: int) -> Path | None:
        """The adapter of a seed: its own or, without a stage on shots, the one all seeds share.

        None where the recipe measures the backbone as it is.
        """
        if self.recipe.shots_stage is not None:
            return self.seed(seed) / "adapter"
        if self.recipe.stages:
            return self.stage(len(self.recipe.stages) - 1) / "adapter"
        start = self.recipe.backbone.adapter
        return Path(start) if start is not None else None

    @property
    def tuning(self) -> dict[str, dict[str, Any]]:
        """How each adapter came to be, by its folder's name."""
        folders = [self.stage(n) for n in range(len(self.recipe.instruction_stages))]
        folders += [self.seed(seed) for seed in self.recipe.seeds]
        return {
            folder.name: json.loads((folder / "tuning.json").read_text(encoding="utf-8"))
            for folder in folders
            if (folder / "adapter").is_dir()
        }

    @property
    def tuned(self) -> bool:
        """Whether every seed has its adapter."""
        adapters = [self.adapter(seed) for seed in self.recipe.seeds]
        return all(adapter is None or adapter.is_dir() for adapter in adapters)

    @property
    def evaluated(self) -> bool:
        """Whether the run has its report: nothing of it is left to do."""
        return self.tuned and (self.path / "report.json").is_file()

    @property
    def repeat(self) -> str:
        """The command that makes this run again, from the folder named in `run.json`."""
        data = self.info.get("data", {}).get("folder")
        own = str((self.path / "data").resolve())
        options = [] if data in (None, own) else ["--data", data]
        again = self.path.with_name(f"{self.path.name}-again")
        recipe = str(self.path / "recipe.toml")
        return shlex.join(["tallrec", "run", recipe, "--out", str(again), *options])

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other processes from working on the run at the same time; see `locked_folder`."""
        return locked_folder(self.path)


def create_run(path: Path, recipe: Recipe) -> RunDir:
    """Makes a run directory, or opens the one of the same recipe that is there.

    Raises:
        ValueError: If the folder holds another recipe's run or something else.
    """
    if path.exists() and (path.is_file() or any(path.iterdir())):
        run = open_run(path)
        if run.recipe != recipe:
            raise ValueError(
                f"{path} is a run of another recipe: give another --out, or remove that folder"
            )
        return run
    facts = {
        "command": shlex.join(["tallrec", *sys.argv[1:]]),
        "folder": str(Path.cwd()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "tallrec": version("tallrec"),
        "commit": _commit(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    with whole_folder(path) as partial:
        (partial / "run.json").write_bytes(_json(facts))
        (partial / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    return RunDir(path, recipe)


def open_run(path: Path) -> RunDir:
    """Opens a run directory.

    Raises:
        ValueError: If the folder is not one.
    """
    if not (path / "recipe.toml").is_file() or not (path / "run.json").is_file():
        raise ValueError(
            f"{path} is not a run directory of tallrec: it has no recipe.toml and run.json"
        )
    try:
        run = RunDir(path, read_recipe(path / "recipe.toml"))
        run.info  # noqa: B018 - reading it is the check
    except ValueError as error:
        raise ValueError(
            f"{path} is not a run that this version of tallrec can read (move it away, or give "
            f"another folder): {error}"
        ) from None
    return run


def find_runs(folder: Path) -> list[RunDir]:
    """The runs in a folder and in its folders, oldest first; unreadable ones are left out."""
    found = []
    for recipe in folder.rglob("recipe.toml"):
        try:
            found.append(open_run(recipe.parent))
        except ValueError:
            continue
    return sorted(found, key=lambda run: (run.info["started"], run.path))


def free_path(path: Path) -> Path:
    """`path`, or `path-2`, `path-3`, ... if what is there is finished or no run of this version."""
    candidate, number = path, 1
    while candidate.exists() and any(candidate.iterdir()) and not _unfinished(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _unfinished(path: Path) -> bool:
    try:
        return not open_run(path).evaluated
    except ValueError:
        return False


def _json(facts: dict[str, Any]) -> bytes:
    return (json.dumps(facts, indent=2) + "\n").encode()


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
