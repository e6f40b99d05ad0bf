"""Measures scoring on Ray with 1 and 2 workers, and holds the capacity formula against it.

    tallrec demo
    python benchmarks/capacity.py runs/demo

One worker of one core scores a table whose users have 2, 20 or 100 candidates: that gives seconds
for a token and for a row. A second table, 60 candidates for each user, is scored by one worker and
by two, each `tallrec score` from start to end, and compared with the formula and the simulation.
Last, the figures are carried over to `--users` and `--candidates`; with `--tokens-per-second` of
another device, measured there, to that device.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
import polars as pl

from tallrec.data.histories import history_of, samples_of_pairs
from tallrec.data.prepared import Prepared, read_prepared
from tallrec.data.samples import in_blocks
from tallrec.llm.tree import build_tree
from tallrec.run import open_run
from tallrec.scale.capacity import Speed, Work, fit_speed, seconds_of, simulate
from tallrec.steps.score import seed_scorer
from tallrec.steps.tune import load

USERS, BUCKETS = 24, 8
SECONDS_OF_A_BUCKET = 1800
MIXED, HELD_OUT = (2, 20, 100), (60,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, help="its prepared folder, if that was moved")
    parser.add_argument("--users", type=float, default=100e6)
    parser.add_argument("--candidates", type=float, default=200)
    parser.add_argument("--tokens-per-second", type=float, help="of another device")
    parser.add_argument("--price", type=float, default=0.05, help="of a worker for an hour")
    options = parser.parse_args()
    data = options.data or Path(open_run(options.run).info["data"]["folder"])
    prepared = read_prepared(data)
    with tempfile.TemporaryDirectory(prefix="tallrec-benchmark-") as temporary:
        folder = Path(temporary)
        tables = {name: folder / f"{name}.parquet" for name in ("mixed", "held-out")}
        write_pairs(tables["mixed"], prepared, MIXED, seed=0)
        write_pairs(tables["held-out"], prepared, HELD_OUT, seed=1)
        score = partial(scored, options.run, data)
        speed = calibrated(options.run, prepared, tables["mixed"], score)
        work = check(options.run, prepared, tables["held-out"], score, speed)
    extrapolate(replace(work, users=options.users, candidates=options.candidates), speed, options)


def write_pairs(path: Path, prepared: Prepared, counts: tuple[int, ...], seed: int) -> None:
    """Candidates that the first users have not met, drawn at random, so many each in turn."""
    rng = np.random.default_rng(seed)
    train = prepared.splits.train
    users = train.events["user"].cast(pl.String).unique(maintain_order=True)[:USERS]
    rows = []
    for number, user in enumerate(users):
        met = {item for item, _ in history_of(train, user)}
        unseen = [item for item in train.catalog["item"] if item not in met]
        chosen = rng.choice(len(unseen), counts[number % len(counts)], replace=False)
        rows += [(user, unseen[int(i)]) for i in chosen]
    pl.DataFrame(rows, schema=["user", "item"], orient="row").write_parquet(path)


def scored(run: Path, data: Path, table: Path, workers: int) -> tuple[float, Path]:
    """Seconds of `tallrec score`, on as many cores as workers, and its folder."""
    out = table.with_name(f"{table.stem}-{workers}")
    words = [sys.executable, "-m", "tallrec", "score", str(run), "--data", str(data)]
    words += ["--table", str(table), "--out", str(out), "--engine", "ray", "--by", "model"]
    words += ["--workers", str(workers), "--buckets", str(BUCKETS)]
    cores = sorted(os.sched_getaffinity(0))[-workers:]
    start = time.perf_counter()
    subprocess.run(
        words,
        check=True,
        stderr=subprocess.DEVNULL,
        preexec_fn=partial(os.sched_setaffinity, 0, cores),
    )
    return time.perf_counter() - start, out


def tokens_of(run: Path, prepared: Prepared, pairs: pl.DataFrame) -> dict[str, tuple[int, int]]:
    """Tokens of each user's rows, what they share once; and tokens of the longest shared part."""
    opened = open_run(run)
    backbone = load(opened.recipe, say=lambda _line: None)
    scorer = seed_scorer(opened, backbone, opened.recipe.seeds[0], prepared.info.domain)
    found, host = {}, 0.0
    for (user,), own in pairs.partition_by("user", as_dict=True).items():
        samples = samples_of_pairs(prepared.splits.train, own, longest=prepared.info.history)
        start = time.process_time()
        rows = scorer.encode(in_blocks(samples, opened.recipe.evaluation.block))
        prompts = [row.prompt for row in rows]
        distinct = len(build_tree(prompts).ids_n)
        host += time.process_time() - start
        first, last = min(prompts), max(prompts)  # what these share, all share
        shared = sum(
            1 for _ in takewhile(lambda ab: ab[0] == ab[1], zip(first, last, strict=False))
        )
        found[str(user)] = distinct, shared
    print(f"to tokenize and lay out: {1e3 * host / len(pairs):.2f} ms a row of one core")
    return found


def calibrated(run: Path, prepared: Prepared, table: Path, score: partial) -> Speed:
    """The speed of one worker."""
    seconds, out = score(table, 1)
    tokens = tokens_of(run, prepared, pl.read_parquet(table))
    buckets = []
    for file in sorted((out / "scores").iterdir()):
        users = pl.read_parquet(file)["user"]
        done = json.loads((out / "done" / f"{file.stem}.json").read_text())
        buckets.append((sum(tokens[u][0] for u in users.unique()), len(users), done["seconds"]))
    busy = sum(bucket[2] for bucket in buckets)
    speed = fit_speed(*zip(*buckets, strict=True), start=seconds - busy)
    rate = f"{1 / speed.token:,.0f} tokens/s" if speed.token else "tokens cost nothing"
    print(f"start {speed.start:.1f} s, {rate}, {1e3 * speed.row:.3f} ms a row")
    return speed


def check(run: Path, prepared: Prepared, table: Path, score: partial, speed: Speed) -> Work:
    """Prints measured and expected seconds of the table that was held out."""
    pairs = pl.read_parquet(table)
    tokens = tokens_of(run, prepared, pairs)
    users = len(tokens)
    history = sum(shared for _, shared in tokens.values()) / users
    own = (sum(all_ for all_, _ in tokens.values()) / users - history) / HELD_OUT[0]
    work = Work(users, HELD_OUT[0], history, own)
    print(f"{work.rows:.0f} rows, {history:.0f} tokens of history, {own:.1f} of a candidate")
    for workers in (1, 2):
        seconds, out = score(table, workers)
        facts = [json.loads(file.read_text()) for file in (out / "done").iterdir()]
        busy = sum(fact["seconds"] for fact in facts)
        expected = seconds_of(work, speed, workers)
        played = simulate(work, speed, workers, buckets=BUCKETS)
        print(
            f"{workers} workers: {seconds:.1f} s, {workers * work.rows / busy:.1f} rows/s once "
            f"loaded; formula {expected:.1f} s, simulation {played:.1f} s"
        )
    return work


def extrapolate(work: Work, speed: Speed, options: argparse.Namespace) -> None:
    """Prints worker hours and cost of the whole."""
    if options.tokens_per_second:
        speed = replace(speed, token=1 / options.tokens_per_second)
    by_token, by_row = work.tokens * speed.token / 3600, work.rows * speed.row / 3600
    without = work.rows * (work.history_tokens + work.candidate_tokens) / work.tokens
    print(f"{work.rows:.3g} rows, {work.tokens:.3g} tokens ({without:.1f} times as many unshared)")
    print(f"worker hours: {by_token:,.0f} for tokens, {by_row:,.0f} for rows")
    print(f"cost: {options.price * (by_token + by_row):,.0f} at {options.price} a worker hour")
    for workers in (16, 256, 4096):
        hours = seconds_of(work, speed, workers) / 3600
        played = simulate(work, speed, workers, buckets=16_384, mean_life=24 * 3600) / 3600
        print(
            f"{workers:5} workers: {hours:10,.1f} h; a worker dying once a day: {played:10,.1f} h"
        )


if __name__ == "__main__":
    main()
