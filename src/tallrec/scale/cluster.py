"""A Ray cluster: one that runs already, or this machine for as long as a job takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any


@dataclass(frozen=True)
class ClusterOptions:
    """Where to work, and with how much.

    Attributes:
        address: Of a running Ray cluster; None starts Ray on this machine, for this job only.
        workers: How many at once; one a GPU, or else one a CPU, unless given.
    """

    address: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1; got {self.workers}")


@contextmanager
def connected(options: ClusterOptions) -> Iterator[None]:
    """Connects to a cluster, or starts Ray here; ends with the block.

    Raises:
        ValueError: If Ray is not installed or the cluster does not answer.
    """
    if find_spec("ray") is None:
        raise ValueError("--engine ray needs Ray: pip install 'tallrec[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if options.address is None:
        quiet |= {"include_dashboard": False, "num_cpus": max(options.workers or 0, _cpus())}
    try:
        ray.init(address=options.address or "local", **quiet)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise ValueError(
            f"no Ray cluster answers at {options.address}: {' '.join(str(error).split())[:200]}"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
