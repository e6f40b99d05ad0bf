"""Loggers of Trainer by name: where each step of tuning is shown besides `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import (
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)

LOGGERS: dict[str, type[TrainerCallback]] = {
    "tensorboard": TensorBoardCallback,
    "wandb": WandbCallback,
    "mlflow": MLflowCallback,
    "trackio": TrackioCallback,
}


def add_loggers(trainer: Trainer, names: Sequence[str], folder: Path, *, done: int) -> None:
    """Adds loggers to a Trainer.

    Args:
        trainer: A Trainer that reports to nothing yet.
        names: Keys of `LOGGERS`.
        folder: The stage's folder. TensorBoard writes to `folder / "tensorboard"`, others where
            their own settings say.
        done: Steps that an earlier, interrupted process has completed; what it logged after them
            is passed over.
    """
    for name in names:
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
            trainer.add_callback(TensorBoardCallback(writer))  # type: ignore[no-untyped-call]
        else:
            trainer.add_callback(LOGGERS[name]())
