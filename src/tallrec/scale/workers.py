"""Ray's actors work off jobs: lost ones are replaced, their jobs go to others.

This module imports neither Polars nor torch: an actor sets its threads before they look.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from tallrec.scale.cluster import ClusterOptions

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

S = TypeVar("S")  # what a worker keeps between jobs
R = TypeVar("R")

_ATTEMPTS = 3  # of a job whose worker dies under it, and of a worker that cannot start
_SILENCE = 30.0  # seconds without any worker, after which to say so


@dataclass
class Outcome:
    """What became of a job: a result, or why there is none."""

    result: Any = None
    failure: str | None = None


class Worker:
    """What runs in an actor: keeps a state from job to job, such as a loaded model."""

    def __init__(self, threads: int, start: bytes) -> None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"):
            os.environ[name] = str(threads)
        from ray import cloudpickle

        self._state = cloudpickle.loads(start)()

    def ready(self) -> None:
        """Returns when the worker has started."""

    def do(self, job: bytes) -> Outcome:
        """Does a job; a mistake of the user's is an outcome too."""
        from ray import cloudpickle

        try:
            return Outcome(result=cloudpickle.loads(job)(self._state))
        except ValueError as error:
            return Outcome(failure=str(error))


class Workers(Generic[S]):
    """Long-lived actors, all with the same kind of state; a context that ends them.

    Args:
        start: Makes a worker's state, in its process.
        options: How many there are.
        say: Shows a line to the user.
    """

    def __init__(
        self, start: Callable[[], S], options: ClusterOptions, say: Callable[[str], None]
    ) -> None:
        import ray
        from ray import cloudpickle

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        self.count = options.workers or gpus or max(1, sum(cpus))
        self.threads = max(1, min(sum(cpus) // self.count, max(cpus, default=1)))
        remote = ray.remote(num_cpus=self.threads, num_gpus=min(1.0, gpus / self.count))(Worker)
        self._new: Callable[..., Any] = remote.remote
        self._start = cloudpickle.dumps(start)  # type: ignore[no-untyped-call]
        self._say = say
        self._idle: list[ActorHandle[Worker]] = []
        self._busy: dict[ObjectRef[Any], tuple[ActorHandle[Worker], int | None]] = {}
        self._false_starts = 0
        self._last_error = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for actor in (*self._idle, *(actor for actor, _ in self._busy.values())):
            ray.kill(actor)

    def run(self, jobs: Mapping[int, Callable[[S], R]]) -> Iterator[tuple[int, Outcome]]:
        """Does jobs, each on one worker, and yields their outcomes as they come.

        A job whose worker dies, or that fails by no mistake of the user's, is tried again; a
        worker that dies is replaced as soon as the cluster has room for it. What a job writes must
        be whole or absent for that.

        Raises:
            ValueError: If workers cannot start.
        """
        from ray import cloudpickle

        waiting, attempts, left = deque(jobs), Counter[int](), len(jobs)
        while left:
            self._hire(min(self.count, left))
            while self._idle and waiting:
                actor, job = self._idle.pop(), waiting.popleft()
                self._busy[actor.do.remote(cloudpickle.dumps(jobs[job]))] = actor, job
            for number, outcome in self._finished():
                attempts[number] += 1
                if outcome is None and attempts[number] < _ATTEMPTS:
                    waiting.append(number)
                    continue
                left -= 1
                yield number, outcome or Outcome(failure=self._last_error)

    def _hire(self, wanted: int) -> None:
        for _ in range(wanted - len(self._idle) - len(self._busy)):
            actor = self._new(self.threads, self._start)
            self._busy[actor.ready.remote()] = actor, None

    def _finished(self) -> Iterator[tuple[int, Outcome | None]]:
        """Waits for a worker; yields what became of its job, None if it has to be done again."""
        import ray
        from ray.exceptions import RayActorError, RayError

        done, _ = ray.wait(list(self._busy), timeout=_SILENCE)
        if not done and all(job is None for _, job in self._busy.values()):
            self._say(
                f"Waiting for room for a worker: {self.threads} free CPUs (and a GPU, if there are "
                f"any) on one node of the cluster"
            )
        for ref in done:
            actor, job = self._busy.pop(ref)
            outcome: Outcome | None = None
            try:
                outcome = ray.get(ref)
                self._idle.append(actor)
            except RayActorError as error:
                self._lost(actor, job, _in_short(error))
            except RayError as error:
                self._last_error = _in_short(error)
                self._idle.append(actor)
            if job is not None:
                yield job, outcome

    def _lost(self, actor: ActorHandle[Worker], job: int | None, reason: str) -> None:
        import ray

        ray.kill(actor)
        self._last_error = reason
        self._false_starts = 0 if job is not None else self._false_starts + 1
        if self._false_starts >= _ATTEMPTS * self.count:
            raise ValueError(f"no worker can start: {reason}")
        self._say("Lost a worker" + ("" if job is None else f" at bucket {job}") + f": {reason}")


def _in_short(error: Exception) -> str:
    """The last line of what Ray tells, which names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
