"""What the time of tuning and scoring goes to, by torch operator.

    python benchmarks/shares.py [--int8]

Paper prompts of MovieLens-100K on SmolLM2-135M, after a warm-up on the same rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.profiler import ProfilerActivity, profile

from tallrec.assets import fetch
from tallrec.data.movielens import read_movielens_100k
from tallrec.data.samples import build_samples
from tallrec.data.splits import split_paper
from tallrec.llm.adapter import attach_lora
from tallrec.llm.backbone import load_backbone
from tallrec.llm.scoring import score_rows
from tallrec.llm.tuning import TuningOptions, tune
from tallrec.prompts import TEMPLATES
from tallrec.prompts.answers import encode, resolve_answers


def show(what: str, run: Callable[[], object], longest: int) -> None:
    """Prints the operators that took most."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    found = sorted(profiled.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in found)
    print(f"\n{what}: {total / 1e6:.2f} s in operators")
    for event in found[:longest]:
        share = event.self_cpu_time_total / total
        print(f"  {event.key[:40]:40} {share:6.1%} {event.count:7,} calls")


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64, help="scored; a quarter is tuned on")
    parser.add_argument("--longest", type=int, default=16, help="lines in a table")
    parser.add_argument("--int8", action="store_true", help="products of eight bits")
    options = parser.parse_args()
    backbone = load_backbone(fetch("smollm2-135m"))
    shape = TEMPLATES["paper"]
    answers = resolve_answers(backbone.tokenizer, shape, "movie")
    samples = split_paper(build_samples(read_movielens_100k(fetch("movielens-100k")))).test
    rows = encode(
        backbone.tokenizer,
        shape,
        answers,
        samples[: options.rows],
        domain="movie",
        max_tokens=512,
    )

    def score() -> None:
        score_rows(backbone.model, rows, answers, int8=options.int8)

    show("scoring", score, options.longest)
    model = attach_lora(backbone)
    tuned = rows[: max(8, len(rows) // 4)]

    def run() -> None:
        chosen = TuningOptions(epochs=1, int8=options.int8)
        with TemporaryDirectory() as folder:
            tune(model, tuned, answers, chosen, folder=Path(folder))

    show("tuning", run, options.longest)


if __name__ == "__main__":
    main()
