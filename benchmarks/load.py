"""Load on `tallrec serve` by locust, on loopback: speed at some numbers of clients, or a soak.

    python benchmarks/load.py runs/demo               # 1, 8 and 64 clients, two minutes each
    python benchmarks/load.py runs/demo --by model    # the tuned model, not the Gaussian process
    python benchmarks/load.py runs/demo --soak 30     # memory over 30 minutes of mixed requests

The service is a process of its own that keeps its feedback in a folder of its own. A client ranks
100 candidates drawn at random after a random history of ten, again and again; refused with 429 or
503, it waits about as long as `Retry-After` says. Times are those of answers with 200.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import numpy as np
import psutil

from tallrec.data.prepared import read_prepared
from tallrec.run import open_run

CLIENTS = Path(__file__).with_name("load_clients.py")
GRACE_S = 60  # in which what was asked in time is still answered
SAMPLE_S = 5
WARM_UP_S = 300  # of a soak: buffers, pools and kernels find their size


class Service(NamedTuple):
    """A running service."""

    address: str
    process: psutil.Process

    def metric(self, name: str) -> float:
        """A sample of /metrics that has no labels."""
        with urlopen(f"{self.address}/metrics") as answer:  # noqa: S310 - our own service
            return float(re.search(rf"^{name} (.*)$", answer.read().decode(), re.M)[1])

    def peak(self) -> float:
        """The most memory that it has had, in MiB (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


@contextmanager
def serving(run: Path, folder: Path, *options: str) -> Iterator[Service]:
    """`tallrec serve` on a free port, its limits as they are by default."""
    feedback = f"sqlite:///{folder / 'feedback.db'}"
    command = [sys.executable, "-m", "tallrec", "serve", str(run), "--port", "0", *options]
    log = folder / "log"
    with log.open("w") as stderr, subprocess.Popen(
        [*command, "--feedback", feedback], stderr=stderr
    ) as process:  # fmt: skip
        try:
            while not (ready := re.search(r'"ready", "address": "(.*?)"', log.read_text())):
                if process.poll() is not None:
                    sys.exit(log.read_text())
                time.sleep(0.2)
            yield Service(ready[1], psutil.Process(process.pid))
        finally:
            process.terminate()


@contextmanager
def clients(service: Service, folder: Path, kind: str, n: int, seconds: float) -> Iterator[Path]:
    """Locust with so many clients of a kind; yields the file of their answers, then waits."""
    answers = folder / f"{kind}-{n}.jsonl"
    command = [sys.executable, "-m", "locust", "-f", str(CLIENTS), kind, "--headless"]
    command += ["--host", service.address, "--users", str(n), "--spawn-rate", "100"]
    command += ["--run-time", f"{seconds:.0f}s", "--stop-timeout", str(GRACE_S)]
    files = {"TALLREC_ITEMS": str(folder / "items.json"), "TALLREC_ANSWERS": str(answers)}
    command += ["--only-summary", "--exit-code-on-error", "0"]
    log = folder / "locust"
    with (
        log.open("w") as told,
        subprocess.Popen(
            command, env={**os.environ, **files}, stdout=told, stderr=subprocess.STDOUT
        ) as process,
    ):
        yield answers
    if process.returncode:
        sys.exit(log.read_text())


def read(answers: Path) -> list[dict[str, Any]]:
    """What the clients wrote."""
    return [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]


def speed(service: Service, folder: Path, n: int, seconds: float) -> None:
    """Prints a row of the table."""
    names = ("tallrec_batch_requests_sum", "tallrec_batch_requests_count")
    before = [service.metric(name) for name in names]
    with clients(service, folder, "Ranking", n, seconds) as answers:
        pass
    requests, batches = (
        service.metric(name) - was for name, was in zip(names, before, strict=True)
    )
    found = read(answers)
    right = [one for one in found if one["status"] == 200]
    end = min(one["at"] - one["seconds"] for one in found) + seconds
    rate = sum(one["at"] <= end for one in right) / seconds
    p50, p95, p99 = np.percentile([one["seconds"] for one in right], [50, 95, 99])
    counts = Counter(one["status"] for one in found)
    failed = len(found) - counts[200] - counts[429] - counts[503]
    print(
        f"| {n} | {rate:.2f} | {p50:.3f} | {p95:.3f} | {p99:.3f} | {counts[200]} | {counts[429]} "
        f"| {counts[503]} | {failed} | {requests / batches:.1f} | {service.peak():,.0f} |",
        flush=True,
    )


def soak(service: Service, folder: Path, n: int, minutes: float) -> None:
    """Prints memory over time, and whether its last quarter is more than its first."""
    samples: list[tuple[float, float, int, int]] = []
    with clients(service, folder, "Mixed", n, 60 * minutes + WARM_UP_S) as answers:
        start = time.monotonic() + WARM_UP_S
        while (elapsed := time.monotonic() - start) < 60 * minutes:
            memory = service.process.memory_info().rss / 2**20
            facts = service.process.num_threads(), service.process.num_fds()
            if len(samples) % 60 == 0 and elapsed >= 0:
                print(
                    f"{elapsed / 60:5.0f} min {memory:8,.1f} MiB, {len(read(answers)):,} answers, "
                    f"threads and files {facts}",
                    flush=True,
                )
            if elapsed >= 0:
                samples.append((elapsed / 3600, memory, *facts))
            time.sleep(SAMPLE_S)
    hours, memory = np.array([sample[:2] for sample in samples]).T
    quarter = len(samples) // 4
    first, last = memory[:quarter].mean(), memory[-quarter:].mean()
    slope = np.polyfit(hours, memory, 1)[0]
    print(f"first quarter {first:,.1f} MiB, last {last:,.1f} MiB: {last - first:+.1f} MiB")
    print(f"slope {slope:+.1f} MiB an hour, peak {service.peak():,.0f} MiB")
    for name, status, count in sorted(
        (*key, count)
        for key, count in Counter((a["name"], a["status"]) for a in read(answers)).items()
    ):
        print(f"{count:7,} x {status} {name}")


def main() -> None:
    """Starts a service and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--seconds", type=float, default=120, help="for each number of clients")
    parser.add_argument("--by", help="as of tallrec serve")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="instead, watch memory")
    options = parser.parse_args()
    prepared = read_prepared(Path(open_run(options.run).info["data"]["folder"]))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        items = prepared.splits.train.catalog["item"].to_list()
        (folder / "items.json").write_text(json.dumps(items), encoding="utf-8")
        by = ["--by", options.by] if options.by else []
        with serving(options.run, folder, *by) as service:
            if options.soak:
                soak(service, folder, int(options.clients.split(",")[0]), options.soak)
                return
            with clients(service, folder, "Ranking", 2, 10):
                pass  # warm-up
            print("| clients | requests/s | p50 s | p95 s | p99 s | 200 | 429 | 503 | failed "
                  "| requests a batch | peak MiB |\n|" + "---|" * 11)  # fmt: skip
            for n in map(int, options.clients.split(",")):
                speed(service, folder, n, options.seconds)


if __name__ == "__main__":
    main()
