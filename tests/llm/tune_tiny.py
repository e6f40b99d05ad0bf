"""A short tuning of the tiny model, in this process or in one that can be killed."""

import time
from dataclasses import replace
from pathlib import Path

from tallrec.llm.adapter import attach_lora, save_adapter
from tallrec.llm.backbone import load_backbone
from tallrec.llm.tuning import TuningOptions, tune
from tallrec.prompts.responses import ended
from tallrec.types import Samples
from tests.llm.helpers import card_of, generous_splits, scorer_for

OPTIONS = {"epochs": 3, "learning_rate": 5e-3, "batch_size": 4, "micro_batch": 4}
STEPS = 18  # of the options above on the shots below


def shots() -> Samples:
    """Two rows of each of eleven users."""
    return generous_splits().train[[*range(0, 360, 17)]]


def unlike(samples: Samples) -> list:
    """The same questions with the opposite answer, which tuning makes worse and worse."""
    return [replace(sample, liked=not sample.liked) for sample in samples]


def tune_tiny(
    model_folder: Path,
    folder: Path,
    *,
    samples=None,
    valid=(),
    dropout=0.3,
    loggers=(),
    on_progress=lambda *_: None,
    **options,
):
    """Returns backbone, tuned model and log."""
    backbone = load_backbone(model_folder, name="tiny", dtype="float32", device="cpu")
    model = attach_lora(backbone, dropout=dropout, targets=("all-linear",))
    scorer = scorer_for(backbone, model)
    rows = scorer.encode(shots() if samples is None else samples)
    if options.get("loss", "answers") != "answers":
        rows = ended(rows, backbone.tokenizer.eos_token_id)
    log = tune(
        model,
        rows,
        scorer.answers,
        TuningOptions(**{**OPTIONS, **options}),
        folder=folder,
        valid=scorer.encode(valid),
        loggers=loggers,
        on_progress=on_progress,
    )
    return backbone, model, log


def tune_and_save(model_folder: Path, folder: Path, early_stopping: bool) -> None:
    """What a killable process does: slow enough to be caught, an adapter at the end."""
    options = {"valid": unlike(generous_splits().valid[:24]), "patience": 2, "epochs": 9}
    backbone, model, _ = tune_tiny(
        model_folder,
        folder,
        on_progress=lambda *_: time.sleep(0.02),
        **(options if early_stopping else {}),
    )
    save_adapter(model, folder / "adapter", card_of(backbone))
