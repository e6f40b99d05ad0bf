"""Trainer with this project's batch, loss, validation and checkpoints."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from tallrec.llm.loss import collate
from tallrec.llm.scoring import score_rows
from tallrec.llm.sharding import is_sharded
from tallrec.llm.shares import Shares
from tallrec.processes import is_first, local_rank, of_all, rank, together, wait
from tallrec.progress import OnProgress
from tallrec.prompts.answers import Answers, TokenRow
from tallrec.types import FloatArray

if TYPE_CHECKING:
    from peft import PeftModel

_EXPLODED = 20.0  # nats a label above the first loss; log(vocabulary) is about 11


class TuningError(ValueError):
    """Tuning cannot go on; the message says why and what to change."""


class RecommendationTrainer(Trainer):
    """Trainer with the loss on answers, validation by AUC, and a log of plain lines.

    A batch that is split for memory has the loss and the gradients of the whole: each part counts
    by its labels. So does the part of each process, where several tune together: torch's DDP adds
    up the gradients of the adapter. The frozen weights are the processes' own business; each holds
    all of them, or they are sharded (`tallrec.llm.sharding`).
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PeftModel,
        arguments: TrainingArguments,
        rows: Sequence[TokenRow],
        answers: Answers,
        loss: str,
        by_tree: bool,
        valid: Sequence[TokenRow],
        log_file: Path,
        on_progress: OnProgress,
    ) -> None:
        super().__init__(
            model,
            arguments,
            train_dataset=list(rows),
            eval_dataset=list(valid) or None,
        )
        self.answers, self.loss_name, self.by_tree, self.valid = answers, loss, by_tree, valid
        self.rows = cast("Dataset[TokenRow]", list(rows))
        self.n_rows = len(rows)
        self.idle_row = min(rows, key=lambda row: len(row.ids))
        self.data_collator = self._collate
        self.log_file, self.on_progress = log_file, on_progress
        self.remove_callback(PrinterCallback)

    def _collate(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        """A batch; one without rows is computed too, as others wait, and counts nothing."""
        batch = collate(rows or [self.idle_row], self.loss_name, by_tree=self.by_tree)
        return batch | {"n_counted": len(batch["targets_n"]) if rows else 0}

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of this process; accelerate's own share would repeat rows at the end."""
        if together() == 1:
            return super().get_train_dataloader()
        shares = Shares(
            n_rows=self.n_rows,
            batch_size=self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * together(),
            micro_batch=self.args.train_batch_size,
            seed=self.args.data_seed,
            rank=rank(),
            processes=together(),
        )
        return DataLoader(self.rows, batch_sampler=shares, collate_fn=self._collate)

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        if together() == 1:
            return super()._wrap_model(model, training, dataloader)
        frozen = [
            name for name, parameter in model.named_parameters() if not parameter.requires_grad
        ]
        frozen += [name for name, _ in model.named_buffers()]
        # They are equal from the start: nothing of them has to be sent around.
        ddp: Any = DistributedDataParallel  # untyped
        ddp._set_params_and_buffers_to_ignore_for_model(model, frozen)
        on_gpu = self.args.device.type == "cuda"
        return ddp(model, device_ids=[local_rank()] if on_gpu else None)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """The micro-batches of a step, and what their losses together are the mean of."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = sum(batch["n_counted"] for batch in batches)
        if together() > 1:
            count = int(self.accelerator.reduce(torch.tensor(count, device=device), "sum"))
        return batches, count

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """A micro-batch's share of the loss of its step."""
        assert not return_outputs
        assert isinstance(num_items_in_batch, int)
        loss: Tensor = model(inputs)  # inside `computing_loss`
        self._check_loss(float(loss.detach()))
        # DDP takes the mean over the processes of what shall be added up.
        share: Tensor = loss * (inputs["n_counted"] / num_items_in_batch * together())
        return share

    def _check_loss(self, loss: float) -> None:
        first = next((entry["loss"] for entry in self.state.log_history if "loss" in entry), loss)
        if not math.isfinite(loss) or loss > first + _EXPLODED:
            raise TuningError(
                f"the loss became {loss:.3g} at step {self.state.global_step + 1} (it began at "
                f"{first:.3g}): lower learning_rate ({self.args.learning_rate:g}), or use dtype "
                f"float32; the last checkpoint is kept"
            )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:  # of torch, a RuntimeError
            step, folder = self.state.global_step, Path(str(self.args.output_dir))
            # What there is of it takes room that the next try may need.
            shutil.rmtree(folder / f"checkpoint-{step}", ignore_errors=True)
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise TuningError(
                f"the checkpoint of step {step} cannot be written to {folder} ({reason}): make "
                f"room there, or make it writable; the checkpoint before it is kept"
            ) from error

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        wait()  # then the first process writes the file that says that the checkpoint is whole

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not is_first():
            return
        # Told not to save embeddings, PEFT does not look for the base model's config on the hub.
        cast("PeftModel", self.model).save_pretrained(
            str(output_dir), save_embedding_layers=False, state_dict=state_dict
        )

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """AUC of the validation rows' targets."""
        scores = self._validation_scores()
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

    def _validation_scores(self) -> FloatArray:
        """Each process scores its share; where weights are sharded, all score all rows in step."""
        model = cast("PeftModel", self.model)
        if is_sharded(model):
            return score_rows(model, self.valid, self.answers)
        start, stop = (len(self.valid) * k // together() for k in (rank(), rank() + 1))
        return np.concatenate(of_all(score_rows(model, self.valid[start:stop], self.answers)))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs a step to `metrics.jsonl`, the loggers and the progress bar."""
        if "train_runtime" in logs:  # the summary of one call: a resumed run would have two
            return
        super().log(logs, start_time)
        if not is_first():
            return
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(log_line(self.state.log_history[-1]))
        note = f"loss {logs['loss']:.3f}" if "loss" in logs else f"AUC {logs['eval_auc']:.3f}"
        self.on_progress(self.state.global_step, self.state.max_steps, note)


def target_auc(likes: Sequence[bool | None], scores: FloatArray) -> float:
    """AUC of the targets; 0.5 where only one class is there."""
    from sklearn.metrics import roc_auc_score  # a second to import, and read by few tunings

    labels = np.array(likes, dtype=bool)
    return float(roc_auc_score(labels, scores)) if 0 < labels.sum() < len(labels) else 0.5


def log_line(entry: dict[str, float]) -> str:
    """A line of `metrics.jsonl`."""
    return json.dumps(entry, sort_keys=True) + "\n"
