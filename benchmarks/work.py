"""What bench.py has prepared for a measurement, and what its systems share."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from tallrec.llm.backbone import DTYPES
from tallrec.prompts.answers import Answers, TokenRow


def clock() -> float:
    """Seconds; on one thread the processor's, which others on the machine hardly change."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Work:
    """A folder of bench.py: model, adapter and token rows."""

    def __init__(self, folder: Path, task: str, dtype: str) -> None:
        self.folder, self.dtype, self.int8 = folder, dtype, dtype == "int8"
        self.others_dtype = "auto" if self.int8 else dtype  # than tallrec's products
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
