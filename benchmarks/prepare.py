"""Prepares 20 million synthetic interactions and compares time and memory with the targets.

Run it from the repository root: `python benchmarks/prepare.py [--rows 20000000]`. The interactions
are of 200,000 users and 50,000 items, whose popularity falls off as a power law; titles come from
a second file. `tallrec prepare` runs in a process of its own, start-up and audit included.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

ROWS_PER_USER, ROWS_PER_ITEM = 100, 400
SECONDS, GIB = 60, 4  # the targets, for 20 million rows on two cores
_PIECE = 1_000_000  # rows written at a time: this process must stay smaller than the measured one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000_000, help="how many interactions")
    parser.add_argument("--split", default="users", help="users or time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tallrec-benchmark-") as temporary:
        folder = Path(temporary)
        write_items(folder / "items.csv", options.rows // ROWS_PER_ITEM)
        write_interactions(folder / "ratings.csv", options.rows)
        size = (folder / "ratings.csv").stat().st_size / 2**20
        print(f"{options.rows:,} interactions, {size:,.0f} MiB of CSV")
        start = time.perf_counter()
        subprocess.run(command(folder, options.split), check=True)
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = used.ru_maxrss / 2**20  # Linux counts KiB
    print(f"time    {seconds:6.1f} s    target {SECONDS} s    {verdict(seconds, SECONDS)}")
    print(f"        {used.ru_utime + used.ru_stime:6.1f} s of processor time")
    print(f"memory  {peak:6.2f} GiB  target {GIB} GiB   {verdict(peak, GIB)}")
    sys.exit(seconds > SECONDS or peak > GIB)


def command(folder: Path, split: str) -> list[str]:
    words = f"-m tallrec prepare {folder / 'ratings.csv'} --items {folder / 'items.csv'}"
    columns = "--user user --item item --rating rating --timestamp timestamp --title title"
    return [sys.executable, *f"{words} {columns} --split {split} --out {folder / 'out'}".split()]


def write_items(path: Path, items: int) -> None:
    number = pl.int_range(items, eager=True)
    title = pl.format("The Item of Number {} ({})", number, 1920 + number % 100)
    pl.select(item=number, title=title).write_csv(path)


def write_interactions(path: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    popularity = np.cumsum(1 / np.arange(1, rows // ROWS_PER_ITEM + 1))
    with path.open("wb") as file:
        for first in range(0, rows, _PIECE):
            n = min(_PIECE, rows - first)
            piece = {
                "user": rng.integers(rows // ROWS_PER_USER, size=n),
                "item": np.searchsorted(popularity, rng.random(n) * popularity[-1]),
                "rating": rng.integers(1, 11, size=n) / 2,
                "timestamp": rng.integers(1_000_000_000, 1_700_000_000, size=n),
            }
            pl.DataFrame(piece).write_csv(file, include_header=first == 0)


def verdict(figure: float, target: float) -> str:
    return "met" if figure <= target else "missed"


if __name__ == "__main__":
    main()
