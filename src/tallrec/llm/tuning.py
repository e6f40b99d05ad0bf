"""Tuning a LoRA adapter on token rows with transformers' Trainer; we write the batch and the loss."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from tallrec.llm.scoring import base_of, hidden_at, log_odds, pad, score_rows
from tallrec.progress import OnProgress, silent
from tallrec.prompts.answers import Answers, TokenRow

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

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


def answer_loss(model: PeftModel, batch: dict[str, Tensor], answers: Answers) -> Tensor:
    """Binary cross-entropy of the log-odds at every answer position of the rows.

    For a template with one answer this is the cross-entropy of Yes against No at the target; for
    `timeline` the answers of the history are supervised as well.
    """
    hidden_nd = hidden_at(model, batch["ids_bt"], batch["at_n2"])
    odds = log_odds(model, hidden_nd, answers)
    return torch.nn.functional.binary_cross_entropy_with_logits(odds, batch["likes_n"].float())


def all_tokens_loss(model: PeftModel, batch: dict[str, Tensor], _answers: Answers) -> Tensor:
    """Cross-entropy of every token of prompt and answer, as in the paper's released code."""
    loss = model(input_ids=batch["ids_bt"], labels=batch["labels_bt"], use_cache=False).loss
    assert isinstance(loss, Tensor)
    return loss


LOSSES: dict[str, Callable[[PeftModel, dict[str, Tensor], Answers], Tensor]] = {
    "answers": answer_loss,
    "all-tokens": all_tokens_loss,
}


def collate(rows: Sequence[TokenRow], eos: int | None) -> dict[str, Tensor]:
    """A batch of rows: ids_bt, at_n2 (row, position), likes_n and labels_bt (-100 at padding)."""
    ids = [row.ids if eos is None else [*row.ids, eos] for row in rows]
    ids_bt = pad(ids)
    lengths = torch.tensor([len(row) for row in ids])
    inside_bt = torch.arange(ids_bt.shape[1]) < lengths[:, None]
    at = [(b, position) for b, row in enumerate(rows) for position in row.positions]
    return {
        "ids_bt": ids_bt,
        "at_n2": torch.tensor(at),
        "likes_n": torch.tensor([bool(like) for row in rows for like in row.likes]),
        "labels_bt": ids_bt.masked_fill(~inside_bt, -100),
    }


def tune(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
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
        tokenizer: Gives the end token that the loss on all tokens learns.
        rows: What to learn, every label known.
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
    checkpoints = folder / "checkpoints"
    trainer = _RecommendationTrainer(
        model=model,
        args=_arguments(
            checkpoints,
            options,
            n_rows=len(rows),
            validated=bool(valid),
            device=model.device.type,
        ),
        train_dataset=list(rows),
        data_collator=lambda batch: collate(
            batch, tokenizer.eos_token_id if options.loss == "all-tokens" else None
        ),
        callbacks=[_Record(folder / "metrics.jsonl"), _Show(on_progress)],
    )
    trainer.answers, trainer.valid, trainer.loss_name = answers, valid, options.loss
    if valid:
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=options.patience))
    resume = last_checkpoint(checkpoints)
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except torch.OutOfMemoryError as error:
        raise TuningError(
            f"out of memory with micro_batch {options.micro_batch}: give a smaller one "
            f"(gradients are accumulated to the same batch)"
        ) from error
    model.eval()
    return list(trainer.state.log_history)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None.

    Trainer writes `trainer_state.json` last; where it cannot be read, saving was cut off.
    """
    steps = {int(p.name.split("-")[1]): p for p in folder.glob("checkpoint-*")}
    for step in sorted(steps, reverse=True):
        try:
            json.loads((steps[step] / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return steps[step]
    return None


def target_auc(likes: Sequence[bool | None], scores: np.ndarray) -> float:
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
    if valid and len({row.likes[-1] for row in valid}) < 2:
        raise TuningError(
            "the validation rows are all likes or all dislikes, which gives no AUC to stop on: "
            "draw more shots, stratify them by label, or tune without validation"
        )


def _arguments(
    folder: Path, options: TuningOptions, *, n_rows: int, validated: bool, device: str
) -> TrainingArguments:
    accumulation = options.batch_size // options.micro_batch
    epoch_steps = math.ceil(math.ceil(n_rows / options.micro_batch) / accumulation)
    steps = epoch_steps * options.epochs
    warmup = options.warmup * steps if options.warmup < 1 else options.warmup
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.schedule,
        warmup_steps=min(steps, max(1, round(warmup))),
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=accumulation,
        weight_decay=options.weight_decay,
        seed=options.seed,
        logging_strategy="steps",
        logging_steps=1,
        save_strategy="epoch",
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
        use_cpu=device == "cpu",
    )


class _RecommendationTrainer(Trainer):  # type: ignore[misc] # transformers exports it untyped
    answers: Answers
    valid: Sequence[TokenRow]
    loss_name: str
    first_loss: float | None = None

    def compute_loss(self, model: PeftModel, inputs: dict[str, Tensor], **_kwargs: Any) -> Tensor:
        return LOSSES[self.loss_name](model, inputs, self.answers)

    def training_step(self, model: PeftModel, inputs: dict[str, Any], *args: Any) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, *args)
        value = float(loss) * self.current_gradient_accumulation_steps
        self.first_loss = value if self.first_loss is None else self.first_loss
        if not math.isfinite(value) or value > self.first_loss + _EXPLODED:
            raise TuningError(
                f"the loss became {value:.3g} at step {self.state.global_step + 1} (it began at "
                f"{self.first_loss:.3g}): lower learning_rate ({self.args.learning_rate:g}), or "
                f"use dtype float32; the last checkpoint is kept"
            )
        return loss

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        scores = score_rows(self.model, self.valid, self.answers)
        metrics = {"eval_auc": target_auc([row.likes[-1] for row in self.valid], scores)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


class _Record(TrainerCallback):  # type: ignore[misc] # transformers exports it untyped
    """Writes the whole log after each entry, so that a resumed run has each step once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, _args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
        partial = self.path.with_suffix(".partial")
        partial.write_text(
            "".join(json.dumps(entry) + "\n" for entry in state.log_history), encoding="utf-8"
        )
        os.replace(partial, self.path)


class _Show(TrainerCallback):  # type: ignore[misc] # transformers exports it untyped
    def __init__(self, on_progress: OnProgress) -> None:
        self.on_progress = on_progress

    def on_log(self, _args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
        last = state.log_history[-1]
        note = f"loss {last['loss']:.3f}" if "loss" in last else ""
        self.on_progress(state.global_step, state.max_steps, note)
