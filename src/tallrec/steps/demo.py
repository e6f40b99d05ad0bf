"""The demo: every step of the main job, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tallrec.data.prepared import read_prepared
from tallrec.evaluate import to_table
from tallrec.recipe import Recipe
from tallrec.recommend import recommendations_table
from tallrec.run import open_run
from tallrec.steps.data import Say
from tallrec.steps.recommender import recommend_run
from tallrec.steps.runs import run_recipe
from tallrec.steps.tune import load


def run_demo(
    recipe: Recipe, out: Path, *, k: int, say: Say, show: Callable[[object], None]
) -> None:
    """Tunes, evaluates and recommends for the first user of the test part.

    Args:
        recipe: What to do.
        out: The run directory.
        k: How many items to recommend.
        say: Shows a line.
        show: Shows a table.
    """
    started = time.monotonic()
    backbone = load(recipe, say=say)
    show(to_table(run_recipe(recipe, out, backbone=backbone, say=say)))
    test = read_prepared(Path(open_run(out).info["data"]["folder"])).splits.test
    user = test[0].user
    best = recommend_run(out, user, k=k, backbone=backbone, say=say)
    show(recommendations_table(best, f"user {user}"))
    say(f"Report: {out / 'report.md'} ({time.monotonic() - started:.0f} s in all)")
