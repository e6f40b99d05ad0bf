"""Tuning by tallrec and by its opponents, each written as its users would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, Trainer, TrainingArguments
from work import Work, by_length, left_padded

from tallrec.llm.adapter import attach_lora
from tallrec.llm.backbone import load_backbone
from tallrec.llm.tuning import TuningOptions, tune

PORT_BATCH = 128  # rows of a step, as in the released script
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}


def adapted(work: Work) -> Any:
    """Transformers' model with PEFT's adapter."""
    return get_peft_model(work.model(merged=None), LoraConfig(**LORA, task_type="CAUSAL_LM"))


def tallrec_tune(work: Work) -> Callable[[], None]:
    backbone = load_backbone(work.folder / "model", dtype=work.others_dtype, int8=work.int8)
    model = attach_lora(backbone)
    options = TuningOptions(epochs=1, batch_size=32, micro_batch=8, int8=work.int8)

    def run() -> None:
        with TemporaryDirectory() as folder:
            tune(model, work.rows, work.answers, options, folder=Path(folder))

    return run


def port_tune(work: Work, micro_batch: int = 32) -> Callable[[], None]:
    """The released finetune_rec.py: loss on every token over the whole vocabulary.

    At its own 32 rows at once it needs 20 GB. Eight suit a CPU better.
    """
    model = adapted(work)

    def collate(rows: list[list[int]]) -> dict[str, torch.Tensor]:
        batch = left_padded(rows)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return {**batch, "labels": labels}

    def run() -> None:
        with TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=micro_batch,
                gradient_accumulation_steps=PORT_BATCH // micro_batch,
                learning_rate=1e-3,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
                use_cpu=True,
            )
            rows = [row.ids for row in work.rows]
            Trainer(model, arguments, data_collator=collate, train_dataset=rows).train()

    return run


def hf_tune(work: Work) -> Callable[[], None]:
    """A careful loop: rows by length, logits of the answers only."""
    model = adapted(work)
    model.train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)

    def run() -> None:
        ids = [row.ids for row in work.rows]
        for batch in by_length(ids, 8):
            at = [(b, p) for b, i in enumerate(batch) for p in work.rows[i].positions]
            likes = torch.tensor([bool(x) for i in batch for x in work.rows[i].likes]).float()
            rows = [torch.tensor(ids[i]) for i in batch]
            hidden_btd = (
                model.get_base_model()
                .model(input_ids=pad_sequence(rows, batch_first=True), use_cache=False)
                .last_hidden_state
            )
            hidden_nd = hidden_btd[tuple(torch.tensor(at).T)]
            yes_no = model.get_base_model().lm_head.weight[[work.answers.yes, work.answers.no]]
            logits_n2 = hidden_nd.float() @ yes_no.float().T
            odds_n = logits_n2[:, 0] - logits_n2[:, 1]
            torch.nn.functional.binary_cross_entropy_with_logits(odds_n, likes).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def trl_tune(work: Work) -> Callable[[], None]:
    """TRL's SFTTrainer on prompts and completions, at its defaults but for size and dtype."""
    from datasets import Dataset  # noqa: PLC0415 - only this opponent needs them
    from trl import SFTConfig, SFTTrainer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(work.folder / "model")
    tokenizer.pad_token = tokenizer.eos_token
    model = adapted(work)

    def run() -> None:
        rows = [
            {"input_ids": row.ids, "completion_mask": [0] * len(row.prompt) + [1]}
            for row in work.rows
        ]
        with TemporaryDirectory() as folder:
            arguments = SFTConfig(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=8,
                learning_rate=1e-3,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
            )
            dataset = Dataset.from_list(rows)
            SFTTrainer(model, arguments, train_dataset=dataset, processing_class=tokenizer).train()

    return run
