"""Prepares 1, 10 and 100 million synthetic interactions with Polars in one process and on Ray.

    python benchmarks/scale.py --rows 1000000,10000000,100000000

Each figure is of a process of its own, `tallrec prepare` from start to end, on the same Parquet
file; the interactions are those of `benchmarks/prepare.py`. Memory is the most that the process
and all that it started held at once (PSS, as the operating system counts it, looked at twice a
second). A process that wants more than `--most-gib` in one piece of address space for data is
refused it, so that a machine with other users survives.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import polars as pl
import psutil
from prepare import ROWS_PER_ITEM, write_interactions, write_items

ENGINES = {
    "polars": (),
    "ray-1": ("--engine", "ray", "--workers", "1"),
    "ray-2": ("--engine", "ray", "--workers", "2"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="1000000,10000000,100000000")
    parser.add_argument("--engines", default="polars,ray-2", help="polars, ray-1, ray-2")
    parser.add_argument("--most-gib", type=float, default=16)
    parser.add_argument("--timeout", type=float, default=480, help="seconds for one process")
    parser.add_argument("--tables", type=Path, help="keep the synthetic tables here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tallrec-benchmark-") as temporary:
        for rows in map(int, options.rows.split(",")):
            folder = (options.tables or Path(temporary)) / str(rows)
            if not (folder / "ratings.parquet").exists():
                write(folder, rows)
            for engine in filter(None, options.engines.split(",")):
                shutil.rmtree(folder / "out", ignore_errors=True)
                seconds, gib, end = measured(
                    command(folder, ENGINES[engine]), options.most_gib, options.timeout
                )
                speed = f"{rows / seconds:9,.0f} rows/s" if end == "done" else end
                print(f"{rows:11,} {engine:7} {seconds:6.1f} s {gib:6.2f} GiB {speed}", flush=True)


def write(folder: Path, rows: int) -> None:
    """Writes `ratings.parquet` and `items.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_items(folder / "items.csv", rows // ROWS_PER_ITEM)
    write_interactions(folder / "ratings.csv", rows)
    pl.scan_csv(folder / "ratings.csv").sink_parquet(folder / "ratings.parquet.part")
    (folder / "ratings.csv").unlink()
    (folder / "ratings.parquet.part").rename(folder / "ratings.parquet")


def command(folder: Path, engine: tuple[str, ...]) -> list[str]:
    paths = (str(folder / "ratings.parquet"), "--items", str(folder / "items.csv"))
    return [
        sys.executable,
        "-m",
        "tallrec",
        "prepare",
        *paths,
        "--out",
        str(folder / "out"),
        *engine,
    ]


def measured(words: list[str], most_gib: float, timeout: float) -> tuple[float, float, str]:
    """Runs a command: its seconds, the most GiB that it and its children held, how it ended."""
    limit = partial(limited, int(most_gib * 2**30))
    start = time.perf_counter()
    peak = 0.0
    with tempfile.TemporaryFile("w+") as errors:
        process = psutil.Popen(words, stdout=subprocess.DEVNULL, stderr=errors, preexec_fn=limit)
        while process.poll() is None and time.perf_counter() - start < timeout:
            peak = max(peak, held(process))
            time.sleep(0.5)
        seconds = time.perf_counter() - start
        if process.poll() is None:
            for child in process.children(recursive=True):
                child.kill()
            process.kill()
            return seconds, peak, f"stopped after {timeout:.0f} s"
        errors.seek(0)
        last = (errors.read().strip().splitlines() or [""])[-1]
        return seconds, peak, "done" if not process.wait() else f"failed: {last[:100]}"


def limited(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def held(process: psutil.Process) -> float:
    """GiB of a process and all that it started."""
    total = 0
    for one in [process, *descendants(process.children)]:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += one.memory_full_info().pss
    return total / 2**30


def descendants(children: Callable[..., list[psutil.Process]]) -> list[psutil.Process]:
    try:
        return children(recursive=True)
    except psutil.NoSuchProcess:
        return []


if __name__ == "__main__":
    main()
