"""Trainer's checkpoints: which of them are whole, and what they know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None.

    Trainer writes `trainer_state.json` last; where it cannot be read, saving was cut off.
    """
    steps = {int(p.name.split("-")[1]): p for p in folder.glob("checkpoint-*")}
    for step in sorted(steps, reverse=True):
        try:
            read_state(steps[step])
        except (OSError, ValueError):
            continue
        return steps[step]
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What Trainer knew when it wrote a checkpoint."""
    text = (checkpoint / "trainer_state.json").read_text(encoding="utf-8")
    return cast("dict[str, Any]", json.loads(text))


def stopped_after(state: dict[str, Any] | None) -> int | None:
    """Epochs after which early stopping ended the run that wrote a checkpoint, if it did.

    Trainer forgets that on resuming, and would tune for one more epoch.
    """
    stopping = state["stateful_callbacks"].get("EarlyStoppingCallback") if state else None
    if not state or not stopping:
        return None
    bad = stopping["attributes"]["early_stopping_patience_counter"]
    return round(state["epoch"]) if bad >= stopping["args"]["early_stopping_patience"] else None
