"""One run in several processes, as torchrun and accelerate start them: who is who, and waiting.

A launcher tells each process its number and how many there are by `RANK`, `LOCAL_RANK` and
`WORLD_SIZE`. Without them there is one process, and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

T = TypeVar("T")


def rank() -> int:
    """The number of this process; the first one, 0, writes files and speaks."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def started() -> int:
    """How many processes the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


@contextmanager
def joined(*, gpu: bool) -> Iterator[None]:
    """Inside, the processes that were started together work together.

    Args:
        gpu: Whether each of them computes on a GPU of its own.
    """
    if started() == 1 or together() > 1:
        yield
        return
    import torch.distributed as dist

    if gpu:
        import torch

        torch.cuda.set_device(local_rank())
    dist.init_process_group("nccl" if gpu else "gloo")
    yield
    # After an error the others may never come; then the launcher ends them, and nobody waits.
    dist.destroy_process_group()


def together() -> int:
    """How many processes work together now: 1 outside `joined`."""
    if started() == 1:
        return 1
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Waits until all have come here."""
    if together() > 1:
        import torch.distributed as dist

        dist.barrier()


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process goes through the block before the others begin it.

    What it has made there, the others find made.
    """
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def told_by_first(compute: Callable[[], T]) -> T:
    """What the first process computes, known to all."""
    if together() == 1:
        return compute()
    import torch.distributed as dist

    told = [compute() if is_first() else None]
    dist.broadcast_object_list(told)
    return cast("T", told[0])


def of_all(mine: T) -> list[T]:
    """What each process has, in the order of their numbers, known to all."""
    if together() == 1:
        return [mine]
    import torch.distributed as dist

    everything: list[T | None] = [None] * together()
    dist.all_gather_object(everything, mine)
    return cast("list[T]", everything)
