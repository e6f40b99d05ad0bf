"""Speed and memory of tallrec beside what its users would write otherwise.

    make bench                                  all of it, two hours on two cores
    python benchmarks/bench.py --tasks score    the same in parts: other results are kept

Every measurement is a process of its own (`systems.py`); systems take turns, the order alternates
from round to round, and a figure is the median of the rounds. Both sides compute in the dtype that
tallrec would choose on this machine; tallrec also in float32, as the port does, and with products
of eight bits. Writes `benchmarks/results.json`, where results of other tasks and other machines
stay.

On a machine that others use, set OMP_NUM_THREADS=1: seconds are then the processor's.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import llamacpp
import numpy as np
import torch
from peft import PeftModel

from tallrec.assets import fetch
from tallrec.data.histories import history_of, samples_of_histories
from tallrec.data.movielens import read_movielens_100k
from tallrec.data.samples import build_samples, in_blocks
from tallrec.data.splits import split_paper
from tallrec.llm.adapter import AdapterCard, attach_lora, save_adapter
from tallrec.llm.backbone import DTYPES, Backbone, choose_dtype, load_backbone
from tallrec.llm.gguf_file import write_gguf
from tallrec.llm.tree import build_tree
from tallrec.prompts import TEMPLATES
from tallrec.prompts.answers import encode, resolve_answers
from tallrec.types import Sample

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
SHOTS, MAX_TOKENS, BLOCK = 64, 512, 10
FAST = str(choose_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
# Root mean square of log-odds, against float32 alone.
EQUAL = {"float32": 0.02, "bfloat16": 0.1, "int8": 0.2}


@dataclass(frozen=True)
class Task:
    """Something to be timed, by whom, in which dtypes; `rows_file` names the token rows."""

    name: str
    opponents: tuple[tuple[str, str], ...]
    dtypes: tuple[str, ...]


QUICK = (FAST, "int8")
ALL = tuple(dict.fromkeys((*QUICK, "float32")))
PORT, PORT_8 = ("port", "float32"), ("port-8", "float32")
HF, CACHE = ("tuned-hf", FAST), ("hf-cache", FAST)
LLAMA = (("llama.cpp", "bfloat16"), ("llama.cpp", "int8"))
TASKS = {
    "tune": Task("tune-paper", (PORT, PORT_8, HF, ("trl", FAST)), ALL),
    "score": Task("score-paper", (PORT, HF, *LLAMA), ALL),
    "rank": Task("rank-paper", (PORT, HF, CACHE, *LLAMA), ALL),
    "tune-timeline": Task("tune-timeline", (HF,), QUICK),
    "score-timeline": Task("score-timeline", (HF,), QUICK),
    "score-timeline-blocks": Task("score-timeline-blocks", (HF,), QUICK),
    "rank-timeline": Task("rank-timeline", (HF, CACHE), QUICK),
}


def prepare(folder: Path, n_rows: int) -> int:
    """Model and adapter as folders, and the rows of every task; the adapter's update is random.

    Returns:
        The weights of the model's layers.
    """
    backbone = load_backbone(fetch("smollm2-135m"), dtype="bfloat16")
    backbone.model.save_pretrained(folder / "model")
    backbone.tokenizer.save_pretrained(folder / "model")
    backbone = load_backbone(folder / "model", dtype="bfloat16")
    dataset = read_movielens_100k(fetch("movielens-100k"))
    splits = split_paper(build_samples(dataset))
    test = splits.test[:n_rows]
    user = str(splits.test.events["user"][0])
    catalog, history = splits.test.catalog, history_of(splits.test, user)
    ranked = samples_of_histories(catalog, [history], catalog["item"].to_list(), longest=10)
    for template in ("paper", "timeline"):
        write_rows(folder / f"tune-{template}.json", backbone, template, splits.train[:SHOTS])
        write_rows(folder / f"score-{template}.json", backbone, template, test)
        write_rows(folder / f"rank-{template}.json", backbone, template, ranked)
    blocks = in_blocks(test, BLOCK)
    write_rows(folder / "score-timeline-blocks.json", backbone, "timeline", blocks)
    model = save_random_adapter(backbone, folder / "adapter").merge_and_unload()
    (like,) = fetch("smollm2-135m").glob("*.gguf")
    for name, kind in llamacpp.KINDS.items():
        path = folder / f"merged-{name}.gguf"
        write_gguf(model, backbone.tokenizer, path, kind=kind, like=like)
    return sum(p.numel() for p in backbone.model.model.layers.parameters())


def write_rows(path: Path, backbone: Backbone, template: str, samples: Iterable[Sample]) -> None:
    shape = TEMPLATES[template]
    answers = resolve_answers(backbone.tokenizer, shape, "movie")
    rows = encode(
        backbone.tokenizer, shape, answers, samples, domain="movie", max_tokens=MAX_TOKENS
    )
    if answers.lead:
        raise ValueError("the opponents read answers of one token")
    stored = [[row.ids, row.positions, row.likes] for row in rows]
    path.write_text(json.dumps({"yes": answers.yes, "no": answers.no, "rows": stored}))


def save_random_adapter(backbone: Backbone, folder: Path) -> PeftModel:
    model = attach_lora(backbone)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    card = AdapterCard(
        "bench", backbone.fingerprint, "paper", "movie", "Yes", "No", 0, 1, MAX_TOKENS
    )
    save_adapter(model, folder, card)
    return model


def measure(system: str, task: str, dtype: str, folder: Path) -> dict[str, object] | None:
    """One process; None if the opponent is not installed."""
    command = [sys.executable, str(HERE / "systems.py"), system, task, dtype, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "ModuleNotFoundError" in done.stderr:
        return None
    if done.returncode:
        sys.exit(f"{system} {task} {dtype} failed:\n{done.stderr[-3000:]}")
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def rounds(task: Task, repeats: int, folder: Path) -> dict[tuple[str, str], list[dict]]:
    """All measurements of a task by (system, dtype); the order alternates."""
    systems = [*(("tallrec", dtype) for dtype in task.dtypes), *task.opponents]
    found: dict[tuple[str, str], list[dict]] = {}
    for i in range(repeats):
        for system, dtype in systems if i % 2 == 0 else systems[::-1]:
            measured = measure(system, task.name, dtype, folder)
            if measured is None:
                print(f"{task.name}: {system} is not installed and left out", flush=True)
                continue
            found.setdefault((system, dtype), []).append(measured)
            rate = measured["rows"] / measured["seconds"]
            print(
                f"{task.name:22} {system:9} {dtype:9} round {i + 1}: {rate:8.2f} rows/s, peak "
                f"{measured['peak_mib']:,.0f} MiB",
                flush=True,
            )
    return found


def rate_of(measured: list[dict]) -> np.ndarray:
    return np.array([one["rows"] / one["seconds"] for one in measured])


def results(task: Task, found: dict[tuple[str, str], list[dict]]) -> Iterator[dict[str, object]]:
    """Every opponent against tallrec in the same dtype and in its best."""
    exact = np.array(found.get(("tallrec", "float32"), [{"scores": []}])[0]["scores"])
    for (system, dtype), theirs in found.items():
        if system == "tallrec":
            continue
        for ours_dtype in task.dtypes:
            ours = found["tallrec", ours_dtype]
            mine, other = np.median(rate_of(ours)), np.median(rate_of(theirs))
            yield {
                "name": task.name,
                "ours": round(float(mine), 3),
                "opponent": round(float(other), 3),
                "opponent_name": f"{system} {dtype}",
                "unit": "rows/s",
                "ratio": round(float(mine / other), 2),
                "dtype": ours_dtype,
                "spread": round(float(np.ptp(rate_of(ours)) / mine), 3),
                "opponent_spread": round(float(np.ptp(rate_of(theirs)) / other), 3),
                "rounds": [len(ours), len(theirs)],
                "rows": [ours[0]["rows"], theirs[0]["rows"]],
                "scores_equal": equal(ours[0], theirs[0], exact, ours_dtype, dtype),
                "ours_peak_mib": round(max(one["peak_mib"] for one in ours)),
                "opponent_peak_mib": round(max(one["peak_mib"] for one in theirs)),
                "machine": machine(),
                "commit": commit(),
            }


def equal(ours: dict, theirs: dict, exact: np.ndarray, *dtypes: str) -> bool | None:
    """Whether both are as near to float32 as their dtypes are; None where nothing is scored."""
    if not ours["scores"]:
        return None
    mine = np.array(ours["scores"])[:: theirs["every"]]
    other = np.array(theirs["scores"])
    if not len(exact):
        return rms(mine - other) < 2 * max(EQUAL[dtype] for dtype in dtypes)
    exact = exact[:: theirs["every"]]
    gaps = zip((mine - exact, other - exact), dtypes, strict=True)
    return all(rms(gap) < EQUAL[dtype] for gap, dtype in gaps)


def rms(gap: np.ndarray) -> float:
    return float(np.sqrt((gap**2).mean()))


def gemm_rate() -> float:
    """GFLOP/s of a product of SmolLM2's MLP on 4,096 tokens in the fast dtype, median of 20."""
    x, w = (torch.randn(n, 576).to(DTYPES[FAST]) for n in (4096, 1536))
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        seconds.append(time.perf_counter() - start)
    return 2 * 4096 * 576 * 1536 / float(np.median(seconds)) / 1e9


def machine() -> str:
    """Its processor by name and by the dtype that it is quick in: a hypervisor may hide its AMX."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")
    name = name or platform.machine()
    threads = torch.get_num_threads()
    clock = "1 thread, processor's time" if threads == 1 else f"{threads} threads"
    return f"{name} ({FAST}), {clock}, torch {torch.__version__}"


def commit() -> str:
    words = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def show_work(folder: Path, weights: int, rate: float, found: list[dict]) -> None:
    """Tokens, how many of them are computed, and what share of the machine's rate that is."""
    print(
        f"\n{'task':22} {'tokens':>8} {'distinct':>8} {'tokens/s':>9} {'GFLOP/s':>8} {'of GEMM':>8}"
    )
    for result in {r["name"]: r for r in found if r["dtype"] == FAST}.values():
        stored = json.loads((folder / f"{result['name']}.json").read_text())["rows"]
        rows = [ids[: positions[-1] + 1] for ids, positions, _ in stored]
        tokens, distinct = sum(map(len, rows)), len(build_tree(rows).ids_n)
        seconds = len(rows) / result["ours"]
        flops = (4 if result["name"].startswith("tune") else 2) * weights
        if result["name"].startswith("tune"):  # shared within micro-batches of eight only
            distinct = sum(len(build_tree(rows[i : i + 8]).ids_n) for i in range(0, len(rows), 8))
        achieved = flops * distinct / seconds / 1e9
        print(
            f"{result['name']:22} {tokens:8,} {distinct:8,} {tokens / seconds:8,.0f} "
            f"{achieved:8.0f} {achieved / rate:8.0%}"
        )


def main() -> None:
    """Measures, prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--rows", type=int, default=1000, help="test rows that are scored, of 1,000"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    names = options.tasks.split(",")
    if unknown := [name for name in names if name not in TASKS]:
        parser.error(f"no task {', '.join(unknown)}: choose of {', '.join(TASKS)}")
    chosen = [TASKS[name] for name in names]
    found: list[dict] = json.loads(options.out.read_text()) if options.out.exists() else []

    def is_of(result: dict, *tasks: Task) -> bool:
        return result["name"] in {t.name for t in tasks} and result["machine"] == machine()

    with tempfile.TemporaryDirectory(prefix="tallrec-benchmark-") as temporary:
        folder = Path(temporary)
        weights = prepare(folder, options.rows)
        gc.collect()  # weights that two programs have a view of stay in the memory of both
        rates = []  # others on the machine can only lower them
        for task in chosen:
            kept = [result for result in found if not is_of(result, task)]
            rates.append(gemm_rate())
            found = [*kept, *results(task, rounds(task, options.repeats, folder))]
            options.out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"\n{machine()}; {FAST} GEMM {max(rates):.0f} GFLOP/s")
        new = [result for result in found if is_of(result, *chosen)]
        show_work(folder, weights, max(rates), new)
    print(
        f"\n{'task':22} {'against':18} {'dtype':9} {'ratio':>6} {'ours':>9} {'theirs':>9} peak MiB"
    )
    for result in new:
        print(
            f"{result['name']:22} {result['opponent_name']:18} {result['dtype']:9} "
            f"{result['ratio']:6.2f} {result['ours']:9.2f} {result['opponent']:9.2f} "
            f"{result['ours_peak_mib']:,} / {result['opponent_peak_mib']:,} "
            f"{ {True: '', False: 'SCORES DIFFER', None: ''}[result['scores_equal']] }"
        )


if __name__ == "__main__":
    main()
