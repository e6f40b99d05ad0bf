"""One measurement in a process of its own: tallrec or an opponent, one task, one dtype.

`bench.py` starts it as `python systems.py SYSTEM TASK DTYPE WORK` and reads the line of JSON that
it prints. Opponents are written here as their users would write them.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from llamacpp import LlamaCpp
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    Trainer,
    TrainingArguments,
)

from tallrec.llm.adapter import attach_lora, load_adapter
from tallrec.llm.backbone import DTYPES, load_backbone
from tallrec.llm.scoring import score_rows
from tallrec.llm.tuning import TuningOptions, tune
from tallrec.prompts.answers import Answers, TokenRow

PORT_BATCH = 32  # rows that the released code scores at once
PORT_MICRO = 8  # rows in its micro-batch of tuning; at the released 32 it needs 20.8 GB
# Each so many-th row is measured where a row costs the same in any company: powers of two, so that
# the rows of one system are among those of another. In ranking, what all begin with is paid once.
EVERY = {
    ("port", "tune"): 4,
    ("port", "score"): 32,
    ("port", "rank"): 32,
    ("tuned-hf", "score"): 8,
    ("tuned-hf", "rank"): 16,
    ("llama.cpp", "score"): 8,
    ("llama.cpp", "rank"): 2,
    ("hf-cache", "rank"): 2,
}
HF_BATCH = 16  # the best of 8, 16, 32 here
CACHE_BATCH = 64
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}


@dataclass(frozen=True)
class Measured:
    """What a process saw: seconds for each `every`-th row, its peak memory, and scores if any."""

    seconds: float
    rows: int
    every: int
    peak_mib: float
    scores: list[float]


class Work:
    """A folder of bench.py: model, adapter and token rows."""

    def __init__(self, folder: Path, task: str, dtype: str) -> None:
        self.folder, self.dtype = folder, dtype
        stored = json.loads((folder / f"{task}.json").read_text())
        self.answers = Answers(stored["yes"], stored["no"])
        self.rows = [TokenRow(*row) for row in stored["rows"]]
        self.prompts = [row.prompt for row in self.rows]

    def model(self, *, merged: bool | None) -> Any:
        """Transformers' model; with the adapter folded in, beside it, or (None) without."""
        model = AutoModelForCausalLM.from_pretrained(
            self.folder / "model", dtype=DTYPES[self.dtype]
        ).eval()
        if merged is None:
            return model
        model = PeftModel.from_pretrained(model, self.folder / "adapter").eval()
        return model.merge_and_unload() if merged else model


def left_padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    ids = [torch.tensor(row).flip(0) for row in rows]
    ids_bt = pad_sequence(ids, batch_first=True, padding_value=0).flip(1)
    ones = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).flip(1)
    return {"input_ids": ids_bt, "attention_mask": ones}


def by_length(rows: list[list[int]], size: int) -> Iterator[np.ndarray]:
    order = np.argsort([-len(row) for row in rows], kind="stable")
    yield from (order[i : i + size] for i in range(0, len(order), size))


def tallrec_tune(work: Work) -> Callable[[], None]:
    backbone = load_backbone(work.folder / "model", dtype=work.dtype)
    model = attach_lora(backbone)
    options = TuningOptions(epochs=1, batch_size=32, micro_batch=8)

    def run() -> None:
        with TemporaryDirectory() as folder:
            tune(model, work.rows, work.answers, options, folder=Path(folder))

    return run


def tallrec_score(work: Work) -> Callable[[], list[float]]:
    backbone = load_backbone(work.folder / "model", name="bench", dtype=work.dtype)
    model = load_adapter(backbone, work.folder / "adapter")
    return lambda: score_rows(model, work.rows, work.answers).tolist()


def port_tune(work: Work) -> Callable[[], None]:
    """The released finetune_rec.py: loss on every token over the whole vocabulary."""
    model = get_peft_model(work.model(merged=None), LoraConfig(**LORA, task_type="CAUSAL_LM"))

    def collate(rows: list[list[int]]) -> dict[str, torch.Tensor]:
        batch = left_padded(rows)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return {**batch, "labels": labels}

    def run() -> None:
        with TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=PORT_MICRO,
                gradient_accumulation_steps=2,
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


@torch.no_grad()
def _port_score(work: Work, model: Any) -> list[float]:
    config = GenerationConfig(max_new_tokens=128, do_sample=False, pad_token_id=0, eos_token_id=2)
    scores = []
    for start in range(0, len(work.prompts), PORT_BATCH):
        batch = left_padded(work.prompts[start : start + PORT_BATCH])
        output = model.generate(
            **batch,
            generation_config=config,
            return_dict_in_generate=True,
            output_scores=True,
        )
        first_bv = output.scores[0]
        scores += (first_bv[:, work.answers.yes] - first_bv[:, work.answers.no]).tolist()
    return scores


def port_score(work: Work) -> Callable[[], list[float]]:
    """The released evaluate.py: generates up to 128 tokens and reads the first step's scores."""
    model = work.model(merged=False)
    return lambda: _port_score(work, model)


def hf_tune(work: Work) -> Callable[[], None]:
    """A careful loop: bfloat16, rows by length, logits of the answers only."""
    model = get_peft_model(work.model(merged=None), LoraConfig(**LORA, task_type="CAUSAL_LM"))
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


def hf_score(work: Work) -> Callable[[], list[float]]:
    """Merged adapter, rows by length, logits of the last position only."""
    model = work.model(merged=True)

    @torch.no_grad()
    def run() -> list[float]:
        scores = np.zeros(len(work.prompts))
        for batch in by_length(work.prompts, HF_BATCH):
            inputs = left_padded([work.prompts[i] for i in batch])
            positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            last_bv = model(
                **inputs, position_ids=positions, logits_to_keep=1, use_cache=False
            ).logits[:, -1]
            odds_b = last_bv[:, work.answers.yes] - last_bv[:, work.answers.no]
            scores[batch] = odds_b.float().numpy()
        return scores.tolist()

    return run


def hf_cache_score(work: Work) -> Callable[[], list[float]]:
    """For ranking: the common beginning once, its cache repeated over batches of candidates."""
    model = work.model(merged=True)

    @torch.no_grad()
    def run() -> list[float]:
        first, last = min(work.prompts), max(work.prompts)
        shared = next(i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
        cache = model(input_ids=torch.tensor([first[:shared]])).past_key_values
        scores = np.zeros(len(work.prompts))
        own = [prompt[shared:] for prompt in work.prompts]
        for batch in by_length(own, CACHE_BATCH):
            repeated = DynamicCache(
                [
                    (
                        layer.keys.repeat(len(batch), 1, 1, 1),
                        layer.values.repeat(len(batch), 1, 1, 1),
                    )
                    for layer in cache.layers
                ]
            )
            rows = [torch.tensor(own[i]) for i in batch]
            hidden_btd = model.model(
                input_ids=pad_sequence(rows, batch_first=True), past_key_values=repeated
            ).last_hidden_state
            last_bd = hidden_btd[range(len(batch)), [len(own[i]) - 1 for i in batch]]
            logits_bv = model.lm_head(last_bd)
            odds_b = logits_bv[:, work.answers.yes] - logits_bv[:, work.answers.no]
            scores[batch] = odds_b.float().numpy()
        return scores.tolist()

    return run


def llama_cpp_score(work: Work) -> Callable[[], list[float]]:
    """llama.cpp on the merged weights: sequences that share what all rows begin with."""
    path, longest = work.folder / f"merged-{work.dtype}.gguf", max(map(len, work.prompts))
    engine = LlamaCpp(path, longest)
    return lambda: engine.score(work.prompts, work.answers.yes, work.answers.no)


def trl_tune(work: Work) -> Callable[[], None]:
    """TRL's SFTTrainer on prompts and completions, at its defaults but for size and dtype."""
    from datasets import Dataset  # noqa: PLC0415 - only this opponent needs them
    from trl import SFTConfig, SFTTrainer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(work.folder / "model")
    tokenizer.pad_token = tokenizer.eos_token

    def run() -> None:
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
            rows = [
                {"input_ids": row.ids, "completion_mask": [0] * len(row.prompt) + [1]}
                for row in work.rows
            ]
            SFTTrainer(
                work.model(merged=None),
                arguments,
                train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer,
                peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
            ).train()

    return run


SYSTEMS: dict[str, Callable[[Work], Callable[[], Any]]] = {
    "tallrec tune": tallrec_tune,
    "tallrec score": tallrec_score,
    "port tune": port_tune,
    "port score": port_score,
    "tuned-hf tune": hf_tune,
    "tuned-hf score": hf_score,
    "hf-cache score": hf_cache_score,
    "llama.cpp score": llama_cpp_score,
    "trl tune": trl_tune,
}


def main() -> None:
    """Warms up on eight rows, then measures the task once."""
    system, task, dtype, folder = sys.argv[1:]
    what = task.split("-")[0]
    kind = "tune" if what == "tune" else "score"
    work = Work(Path(folder), task, dtype)
    every = EVERY.get((system, what), 1)
    work.rows = rows = work.rows[::every]
    work.prompts = prompts = work.prompts[::every]
    run = SYSTEMS[f"{system} {kind}"](work)
    if system != "port":  # of which a batch is most of the measurement
        work.rows, work.prompts = rows[::-1][:8], prompts[::-1][:8]
        run()
        work.rows, work.prompts = rows, prompts
    # On one thread the processor's time, which others on the machine hardly change.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    scores = run()
    seconds = clock() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(asdict(Measured(seconds, len(rows), every, peak, scores or []))))


if __name__ == "__main__":
    main()
