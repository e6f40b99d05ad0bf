"""Tuning a LoRA adapter on token rows. Trainer is the loop; batch, loss and validation are ours."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from tallrec.llm.checkpoints import last_checkpoint, read_state, stopped_after
from tallrec.llm.loss import LOSSES, collate, count_labels
from tallrec.llm.scoring import score_rows
from tallrec.progress import OnProgress, silent
from tallrec.prompts.answers import Answers, TokenRow
from tallrec.types import FloatArray

if TYPE_CHECKING:
    from peft import PeftModel

_CHECKPOINTS = 20  # a killed run loses at most this part of it; with validation, an epoch
_EXPLODED = 20.0  # nats a label above the first loss; log(vocabulary) is about 11


@dataclass(frozen=True)
class TuningOptions:
    """How one stage of tuning runs.

    Attributes:
        epochs: Passes over the rows, at most.
        learning_rate: Peak learning rate of AdamW.
        schedule: Learning-rate schedule, a name of transformers: `linear`, `cosine`, ...
        warmup: Share of the steps in which the learning rate rises (below 1), or their number.
        batch_size: Rows in one optimizer step.
        micro_batch: Rows in one forward pass; bounds memory.
        weight_decay: Of AdamW.
        loss: A key of `LOSSES`.
        patience: Stop after this many validations without a better AUC and keep the best
            weights; needs validation rows.
        seed: Seeds order and dropout.
    """

    epochs: int = 8
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: float = 0.1
    batch_size: int = 8
    micro_batch: int = 8
    weight_decay: float = 0.0
    loss: str = "answers"
    patience: int = 3
    seed: int = 0


class TuningError(ValueError):
    """Tuning cannot go on; the message says why and what to change."""


def tune(
    model: PeftModel,
    rows: Sequence[TokenRow],
    answers: Answers,
    options: TuningOptions,
    *,
    folder: Path,
    valid: Sequence[TokenRow] = (),
    on_progress: OnProgress = silent,
) -> list[dict[str, float]]:
    """Tunes the model's adapter in place; a killed run resumes from `folder` to the same weights.

    Args:
        model: A backbone with a trainable adapter.
        rows: What to learn, every label known; with an end token where that shall be learnt too.
        answers: The verbalizer.
        options: How to tune.
        folder: Checkpoints and `metrics.jsonl` are written here; checkpoints found here are
            continued.
        valid: Rows whose targets' AUC stops tuning; without them all epochs run.
        on_progress: Called after each step with steps done and steps in all.

    Returns:
        The log: one dict a logged step, as in `metrics.jsonl`.

    Raises:
        TuningError: If the loss is not finite or explodes, or the rows cannot be learnt from.
    """
    _check(rows, valid, options)
    checkpoints, log = folder / "checkpoints", folder / "metrics.jsonl"
    resume = last_checkpoint(checkpoints)
    state = read_state(resume) if resume else None
    folder.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(map(_line, state["log_history"] if state else [])), encoding="utf-8")
    epochs = stopped_after(state) or options.epochs
    arguments = _arguments(
        checkpoints, options, epochs, len(rows), bool(valid), use_cpu=model.device.type == "cpu"
    )
    trainer = _RecommendationTrainer(
        model,
        arguments,
        list(rows),
        partial(collate, loss=options.loss),
        answers,
        options,
        valid,
        log,
        on_progress,
    )
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)  # it warns of quick checkpoints
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except torch.OutOfMemoryError as error:
        raise TuningError(
            f"out of memory with micro_batch {options.micro_batch}: give a smaller one "
            f"(gradients are accumulated to the same batch)"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    model.eval()
    return list(trainer.state.log_history)


def target_auc(likes: Sequence[bool | None], scores: FloatArray) -> float:
    """AUC of the targets; 0.5 where only one class is there."""
    labels = np.array(likes, dtype=bool)
    return float(roc_auc_score(labels, scores)) if 0 < labels.sum() < len(labels) else 0.5


def _check(rows: Sequence[TokenRow], valid: Sequence[TokenRow], options: TuningOptions) -> None:
    if options.loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {options.loss!r}")
    if options.batch_size % options.micro_batch:
        raise ValueError(
            f"batch_size ({options.batch_size}) must be a multiple of micro_batch "
            f"({options.micro_batch})"
        )
    if not rows:
        raise TuningError("there is nothing to tune on: give at least one shot")
    if any(None in row.likes[-1:] for row in (*rows, *valid)):
        raise TuningError("some rows have no label: tune and validate on labelled samples")
    if options.loss == "answers" and not all(row.likes for row in rows):
        raise TuningError("general instructions have no answers: use the loss response")
    if valid and len({row.likes[-1] for row in valid}) < 2:
        raise TuningError(
            "the validation rows are all likes or all dislikes, which gives no AUC to stop on: "
            "draw more shots, stratify them by label, or tune without validation"
        )


def _arguments(
    folder: Path, options: TuningOptions, epochs: int, n_rows: int, validated: bool, use_cpu: bool
) -> TrainingArguments:
    accumulation = options.batch_size // options.micro_batch
    epoch_steps = math.ceil(math.ceil(n_rows / options.micro_batch) / accumulation)
    steps = epoch_steps * options.epochs
    warmup = options.warmup * steps if options.warmup < 1 else options.warmup
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.schedule,
        warmup_steps=min(steps, round(warmup)),
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=accumulation,
        weight_decay=options.weight_decay,
        seed=options.seed,
        data_seed=options.seed,
        logging_strategy="steps",
        logging_steps=1,
        save_strategy="epoch" if validated else "steps",
        save_steps=max(1, steps // _CHECKPOINTS),
        save_total_limit=2,
        eval_strategy="epoch" if validated else "no",
        load_best_model_at_end=validated,
        metric_for_best_model="eval_auc" if validated else None,
        greater_is_better=True if validated else None,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=[],
        use_cpu=use_cpu,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # never torch's DataParallel, which copies the model
    return arguments


class _RecommendationTrainer(Trainer):
    """The Trainer with our loss and validation.

    A batch that is split for memory has the loss and the gradients of the whole: each part counts
    by its labels.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PeftModel,
        arguments: TrainingArguments,
        rows: list[TokenRow],
        collate: Callable[[Sequence[TokenRow]], dict[str, Tensor]],
        answers: Answers,
        options: TuningOptions,
        valid: Sequence[TokenRow],
        log_file: Path,
        on_progress: OnProgress,
    ) -> None:
        super().__init__(
            model,
            arguments,
            data_collator=collate,
            train_dataset=rows,
            eval_dataset=list(valid) or None,
        )
        self.answers, self.loss_name, self.valid = answers, options.loss, valid
        self.log_file, self.on_progress = log_file, on_progress
        self.remove_callback(PrinterCallback)
        if valid:
            self.add_callback(EarlyStoppingCallback(early_stopping_patience=options.patience))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(count_labels(batch, self.loss_name) for batch in batches)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        assert not return_outputs
        assert isinstance(num_items_in_batch, int)
        loss = LOSSES[self.loss_name](cast("PeftModel", model), inputs, self.answers)
        self._check_loss(float(loss.detach()))
        return loss * (count_labels(inputs, self.loss_name) / num_items_in_batch)

    def _check_loss(self, loss: float) -> None:
        first = next((entry["loss"] for entry in self.state.log_history if "loss" in entry), loss)
        if not math.isfinite(loss) or loss > first + _EXPLODED:
            raise TuningError(
                f"the loss became {loss:.3g} at step {self.state.global_step + 1} (it began at "
                f"{first:.3g}): lower learning_rate ({self.args.learning_rate:g}), or use dtype "
                f"float32; the last checkpoint is kept"
            )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Told not to save embeddings, PEFT does not look for the base model's config on the hub.
        cast("PeftModel", self.model).save_pretrained(
            str(output_dir), save_embedding_layers=False, state_dict=state_dict
        )

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        scores = score_rows(cast("PeftModel", self.model), self.valid, self.answers)
        if not np.isfinite(scores).all():
            raise TuningError(
                f"validation scores are not finite after step {self.state.global_step}: lower "
                f"learning_rate ({self.args.learning_rate:g}), or use dtype float32"
            )
        metrics = {"eval_auc": target_auc([row.likes[-1] for row in self.valid], scores)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_runtime" in logs:  # the summary of one call: a resumed run would have two
            return
        super().log(logs, start_time)
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(_line(self.state.log_history[-1]))
        note = f"loss {logs['loss']:.3f}" if "loss" in logs else f"AUC {logs['eval_auc']:.3f}"
        self.on_progress(self.state.global_step, self.state.max_steps, note)


def _line(entry: dict[str, float]) -> str:
    return json.dumps(entry, sort_keys=True) + "\n"
