"""Which rows of a step each of several processes computes."""

from __future__ import annotations

from collections.abc import Iterator

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler


class Shares(Sampler[list[int]]):
    """Micro-batches of one process; together the processes go through the rows as one would.

    A step takes the next `batch_size` rows of the same random order, cuts them into micro-batches
    and deals these out in turn. At the end of an epoch, where fewer rows are left, a process may
    get an empty list: all take the same number of steps and passes, as each waits for the others.

    Args:
        n_rows: How many rows there are.
        batch_size: Rows of a step, of all processes together.
        micro_batch: Rows in one forward pass.
        seed: Seeds the order, as it does for one process.
        rank: The number of this process.
        processes: How many there are.
    """

    def __init__(
        self,
        *,
        n_rows: int,
        batch_size: int,
        micro_batch: int,
        seed: int | None,
        rank: int,
        processes: int,
    ) -> None:
        self.order = SeedableRandomSampler(range(n_rows), data_seed=seed)
        self.batch_size, self.micro_batch = batch_size, micro_batch
        self.rank, self.processes = rank, processes

    @property
    def batch_sampler(self) -> SeedableRandomSampler:
        """What Trainer tells the epoch to: it looks for it by this name."""
        return self.order

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        full, rest = divmod(len(self.order), self.batch_size)
        a_step = self.micro_batch * self.processes
        return full * (self.batch_size // a_step) + -(-rest // a_step)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.order)
        for start in range(0, len(order), self.micro_batch * self.processes):
            mine = start + self.rank * self.micro_batch
            yield order[mine : mine + self.micro_batch]
