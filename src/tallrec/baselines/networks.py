"""The network that all sequential recommenders share, and the losses it is fitted by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tallrec.baselines.sequences import Sequences

# Shape letters: b samples, t places of a history, n items of a catalogue, d width of a vector.


class Titles(nn.Module):
    """Vectors of items from those of their titles, which stay as they are; 0 for item 0.

    Args:
        titles_nd: One row an item of the catalogue.
        width: Of the vectors that come out.
    """

    def __init__(self, titles_nd: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("titles_nd", nn.functional.pad(titles_nd, (0, 0, 1, 0)))
        self.narrow = nn.Linear(titles_nd.shape[1], width, bias=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """One vector a number."""
        return self.narrow(self.get_buffer("titles_nd")[numbers])  # type: ignore[no-any-return]


class SequentialNetwork(nn.Module):
    """Log-odds of a like: the state of the history times the vector of the item, plus a constant.

    Args:
        items: Numbers of items to vectors; all zeros for number 0.
        reader: Vectors of events to a state.
        width: Of the vectors of items.
    """

    def __init__(self, items: nn.Module, reader: nn.Module, width: int) -> None:
        super().__init__()
        self.items, self.reader = items, reader
        self.feedback = small_table(2, width)
        self.wish = nn.Linear(reader.width, width)  # type: ignore[arg-type]
        self.offset = nn.Parameter(torch.zeros(()))

    def wishes(self, batch: Sequences) -> Tensor:
        """What a user would like best, as the vector of an item, wish_bd."""
        real_bt = batch.items_bt > 0
        events_btd = self.items(batch.items_bt) + self.feedback(batch.likes_bt)
        wish_bd: Tensor = self.wish(self.reader(events_btd * real_bt[..., None], real_bt))
        return wish_bd

    def forward(self, batch: Sequences) -> Tensor:
        """Log-odds of the targets, odds_b."""
        odds_b: Tensor = (self.wishes(batch) * self.items(batch.targets_b)).sum(-1) + self.offset
        return odds_b

    def of_all_items(self, batch: Sequences, n_items: int) -> Tensor:
        """Log-odds of every item of the catalogue, odds_bn."""
        items_nd = self.items(torch.arange(1, n_items + 1))
        odds_bn: Tensor = self.wishes(batch) @ items_nd.T + self.offset
        return odds_bn


def item_table(n_items: int, width: int) -> nn.Embedding:
    """A vector for each item; one that no shot shows stays small and says little."""
    table = small_table(n_items + 1, width)
    table.padding_idx = 0
    with torch.no_grad():
        table.weight[0] = 0
    return table


def small_table(n: int, width: int) -> nn.Embedding:
    """Vectors of normal numbers of deviation 0.01, as in the released code of DROS."""
    table = nn.Embedding(n, width)
    nn.init.normal_(table.weight, std=0.01)
    return table


def robust_loss(odds_bn: Tensor, batch: Sequences, likes_b: Tensor, shares_n: Tensor) -> Tensor:
    """The distributionally robust part of DROS (Yang et al., SIGIR 2023).

    The logarithm of the sum over items of ``exp(p_i e_i^2)``: of squared errors, the worst weigh
    most, with the popularity p as nominal distribution. As in its released code, an item that was
    not asked about should score 0 and a liked target 1; a disliked target, which that code does not
    have, should score 0 too.

    Args:
        odds_bn: Log-odds of every item.
        batch: The samples; all targets are in the catalogue.
        likes_b: 1 where the target was liked, else 0.
        shares_n: The nominal distribution.
    """
    wanted_bn = torch.zeros_like(odds_bn)
    wanted_bn.scatter_(1, batch.targets_b[:, None] - 1, likes_b[:, None])
    return ((odds_bn - wanted_bn).square() * shares_n).logsumexp(dim=1).mean()
