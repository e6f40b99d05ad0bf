"""One measurement in a process of its own: tallrec or an opponent, one task, one dtype.

`bench.py` starts it as `python systems.py SYSTEM TASK DTYPE WORK` and reads the line of JSON that
it prints. Opponents are written as their users would write them: here, in `tuners.py` and in
`llamacpp.py`.
"""

from __future__ import annotations

import sys

if sys.argv[1] == "tallrec":  # these come with TRL, and libraries import them where they are
    sys.modules |= dict.fromkeys(("datasets", "pandas", "pyarrow"))  # type: ignore[arg-type]

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llamacpp import LlamaCpp
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    DynamicCache,
    GenerationConfig,
)
from tuners import hf_tune, port_tune, tallrec_tune, trl_tune
from work import Work, by_length, clock, left_padded

from tallrec.llm.adapter import load_adapter
from tallrec.llm.backbone import load_backbone
from tallrec.llm.scoring import score_rows

PORT_BATCH = 32  # rows that the released code scores at once
# Rows that are measured at most, where a row costs the same in any company: every second, fourth,
# eighth ... one, so that those of one system are among those of another. In ranking, what all rows
# begin with is paid once.
MOST_ROWS = {
    ("port", "tune"): 32,
    ("port-8", "tune"): 16,
    ("port", "score"): 32,
    ("port", "rank"): 32,
    ("tuned-hf", "tune"): 32,
    ("trl", "tune"): 16,
    ("tuned-hf", "score"): 64,
    ("tuned-hf", "rank"): 64,
    ("llama.cpp", "score"): 64,
    ("llama.cpp", "rank"): 256,
    ("hf-cache", "rank"): 512,
}
HF_BATCH = 16  # the best of 8, 16, 32 here
CACHE_BATCH = 64


@dataclass(frozen=True)
class Measured:
    """What a process saw: seconds for each `every`-th row, its peak memory, and scores if any."""

    seconds: float
    rows: int
    every: int
    peak_mib: float
    scores: list[float]


def tallrec_score(work: Work) -> Callable[[], list[float]]:
    backbone = load_backbone(
        work.folder / "model", name="bench", dtype=work.others_dtype, int8=work.int8
    )
    model = load_adapter(backbone, work.folder / "adapter")
    return lambda: score_rows(model, work.rows, work.answers, int8=work.int8).tolist()


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


SYSTEMS: dict[str, Callable[[Work], Callable[[], Any]]] = {
    "tallrec tune": tallrec_tune,
    "tallrec score": tallrec_score,
    "port tune": port_tune,
    "port-8 tune": partial(port_tune, micro_batch=8),
    "port score": port_score,
    "tuned-hf tune": hf_tune,
    "tuned-hf score": hf_score,
    "hf-cache score": hf_cache_score,
    "llama.cpp score": llama_cpp_score,
    "trl tune": trl_tune,
}


def peak_mib() -> float:
    """This program's peak; getrusage would count the program that started it as well."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def main() -> None:
    """Warms up on eight rows, then measures the task once."""
    system, task, dtype, folder = sys.argv[1:]
    what = task.split("-")[0]
    kind = "tune" if what == "tune" else "score"
    work = Work(Path(folder), task, dtype)
    most = MOST_ROWS.get((system, what), len(work.rows))
    every = 2 ** math.ceil(math.log2(max(1, len(work.rows) / most)))
    work.rows = rows = work.rows[::every]
    work.prompts = prompts = work.prompts[::every]
    run = SYSTEMS[f"{system} {kind}"](work)
    if not system.startswith("port"):  # of which a batch is most of the measurement
        work.rows, work.prompts = rows[::-1][:8], prompts[::-1][:8]
        run()
        work.rows, work.prompts = rows, prompts
    start = clock()
    scores = run()
    seconds = clock() - start
    print(json.dumps(asdict(Measured(seconds, len(rows), every, peak_mib(), scores or []))))


if __name__ == "__main__":
    main()
