"""Tuning a LoRA adapter on token rows. Trainer is the loop; batch, loss and validation are ours."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.distributed import DistError
from transformers import EarlyStoppingCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from tallrec.llm.attention import attending_by_tree
from tallrec.llm.checkpoints import last_checkpoint, read_state, stopped_after
from tallrec.llm.forward import decoder_of, takes_trees
from tallrec.llm.int8 import tuning_in_int8
from tallrec.llm.lean_layers import lean_layers
from tallrec.llm.loggers import add_loggers
from tallrec.llm.lora import quick_adapters
from tallrec.llm.loss import LOSSES, computing_loss
from tallrec.llm.sharding import is_sharded
from tallrec.llm.trainer import RecommendationTrainer, TuningError, log_line
from tallrec.processes import is_first, joined, rank, together, told_by_first
from tallrec.progress import OnProgress, silent
from tallrec.prompts.answers import Answers, TokenRow

if TYPE_CHECKING:
    from peft import PeftModel

_log = logging.getLogger(__name__)
_CHECKPOINTS = 20  # a killed run loses at most this part of it; with validation, an epoch


@dataclass(frozen=True)
class TuningOptions:
    """How one stage of tuning runs.

    Attributes:
        epochs: Passes over the rows, at most.
        learning_rate: Peak learning rate of AdamW.
        schedule: Learning-rate schedule, a name of transformers: `linear`, `cosine`, ...
        warmup: Share of the steps in which the learning rate rises (below 1), or their number.
        batch_size: Rows in one optimizer step, of all processes together.
        micro_batch: Rows in one forward pass, at most; bounds memory.
        weight_decay: Of AdamW.
        loss: A key of `LOSSES`.
        gradient_checkpointing: Whether activations are computed twice to save memory.
        int8: Whether products with frozen weights are of eight bits, where the machine can; see
            `tallrec.llm.int8`.
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
    gradient_checkpointing: bool = False
    int8: bool = False
    patience: int = 3
    seed: int = 0


def tune(
    model: PeftModel,
    rows: Sequence[TokenRow],
    answers: Answers,
    options: TuningOptions,
    *,
    folder: Path,
    valid: Sequence[TokenRow] = (),
    loggers: Sequence[str] = (),
    on_progress: OnProgress = silent,
) -> list[dict[str, float]]:
    """Tunes the model's adapter in place; a killed run resumes from `folder` to the same weights.

    Where a launcher has started several processes, each calls this with the same arguments and
    computes its share of every batch; the adapter is the same in all of them.

    Args:
        model: A backbone with a trainable adapter.
        rows: What to learn, every label known; with an end token where that shall be learnt too.
        answers: The verbalizer.
        options: How to tune.
        folder: Checkpoints and `metrics.jsonl` are written here; checkpoints found here are
            continued.
        valid: Rows whose targets' AUC stops tuning; without them all epochs run.
        loggers: Where else each step is logged; keys of `LOGGERS`.
        on_progress: Called after each step with steps done and steps in all.

    Returns:
        The log: one dict a logged step, as in `metrics.jsonl`.

    Raises:
        TuningError: If the loss is not finite or explodes, the rows cannot be learnt from, or a
            checkpoint cannot be written.
    """
    _check(rows, valid, options)
    with joined(gpu=model.device.type == "cuda"):
        trainer, resume = _trainer(
            model, rows, answers, options, folder, valid, loggers, on_progress
        )
        with _explained(options):
            # Gradient checkpointing goes through the layers again in the backward pass.
            trees = attending_by_tree(decoder_of(model)) if trainer.by_tree else nullcontext()
            computing = computing_loss(model, options.loss, answers)
            with _quick_layers(model, options), trees, computing, _settled_heap():
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    model.eval()
    return list(trainer.state.log_history)


def _trainer(
    model: PeftModel,
    rows: Sequence[TokenRow],
    answers: Answers,
    options: TuningOptions,
    folder: Path,
    valid: Sequence[TokenRow],
    loggers: Sequence[str],
    on_progress: OnProgress,
) -> tuple[RecommendationTrainer, Path | None]:
    """The loop, and the checkpoint that it goes on from."""
    micro_batch = micro_batch_of(options, together())
    checkpoints, log = folder / "checkpoints", folder / "metrics.jsonl"
    resume = told_by_first(lambda: last_checkpoint(checkpoints))
    state = read_state(resume) if resume else None
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        lines = map(log_line, state["log_history"] if state else [])
        log.write_text("".join(lines), encoding="utf-8")
    epochs = stopped_after(state) or options.epochs
    arguments = _arguments(
        checkpoints,
        options,
        epochs,
        len(rows),
        bool(valid),
        micro_batch=micro_batch,
        use_cpu=model.device.type == "cpu",
    )
    by_tree = takes_trees(model, max(len(row.ids) for row in rows))
    trainer = RecommendationTrainer(
        model, arguments, rows, answers, options.loss, by_tree, valid, log, on_progress
    )
    if rank():  # Trainer has seeded all alike, and dropout shall not be the same in all
        torch.manual_seed((options.seed << 16) + rank())
    if valid:
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=options.patience))
    if is_first():
        add_loggers(trainer, loggers, folder, done=state["global_step"] if state else 0)
    if is_sharded(model):
        _log.info("frozen weights are sharded: scores take the adapter beside them, not merged")
    return trainer, resume


@contextmanager
def _quick_layers(model: PeftModel, options: TuningOptions) -> Iterator[None]:
    products = tuning_in_int8(model) if options.int8 else nullcontext()
    with quick_adapters(model), lean_layers(model), products:
        yield


@contextmanager
def _settled_heap() -> Iterator[None]:
    """Inside, garbage is looked for only in what is made inside.

    Trainer looks for it when it begins, which with all that torch has imported takes a second.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _explained(options: TuningOptions) -> Iterator[None]:
    """What goes wrong inside is said for a person; what transformers would warn of is not said."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)  # it warns of quick checkpoints
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TuningError(
            f"out of memory with micro_batch {options.micro_batch}: give a smaller one "
            f"(gradients are accumulated to the same batch)"
        ) from error
    except RuntimeError as error:
        if together() > 1 and (isinstance(error, DistError) or "gloo" in str(error)):
            raise TuningError(
                "another process of this tuning has ended or does not answer: what it said last, "
                "and the launcher's summary, tell why; the same command goes on from the last "
                "checkpoint"
            ) from error
        raise
    finally:
        transformers_logging.set_verbosity(verbosity)


def micro_batch_of(options: TuningOptions, processes: int) -> int:
    """Rows of a forward pass: at most `micro_batch`, so that processes have equal shares.

    Raises:
        TuningError: If they cannot have.
    """
    share, left = divmod(options.batch_size, processes)
    if left:
        fitting = [n for n in range(1, options.batch_size + 1) if options.batch_size % n == 0]
        raise TuningError(
            f"{processes} processes cannot share batches of {options.batch_size} equally: start "
            f"{', '.join(map(str, fitting))} of them, or make batch_size a multiple of {processes}"
        )
    return max(n for n in range(1, min(share, options.micro_batch) + 1) if share % n == 0)


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
    folder: Path,
    options: TuningOptions,
    epochs: int,
    n_rows: int,
    validated: bool,
    *,
    micro_batch: int,
    use_cpu: bool,
) -> TrainingArguments:
    steps = math.ceil(n_rows / options.batch_size) * options.epochs
    warmup = options.warmup * steps if options.warmup < 1 else options.warmup
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.schedule,
        warmup_steps=min(steps, round(warmup)),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=options.batch_size // (micro_batch * together()),
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
        activation_checkpointing=options.gradient_checkpointing,
        run_name=str(folder.parent),
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=[],
        use_cpu=use_cpu,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # never torch's DataParallel, which copies the model
    return arguments
