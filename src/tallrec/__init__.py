"""Tune a causal language model into a recommender from a handful of samples.

The names below are the library's front door; each is imported when it is first used, so that
`import tallrec` costs nothing.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Dataset": "tallrec.types",
    "Samples": "tallrec.types",
    "Scorer": "tallrec.types",
    "DATASETS": "tallrec.data",
    "read_table": "tallrec.data.table",
    "build_samples": "tallrec.data.samples",
    "draw_shots": "tallrec.data.shots",
    "load_recipe": "tallrec.recipe_files",
    "open_run": "tallrec.run",
    "tune_recipe": "tallrec.steps.tune",
    "evaluate_run": "tallrec.steps.evaluate",
    "Recommender": "tallrec.steps.recommender",
    "recommend_run": "tallrec.steps.recommender",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tallrec' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
