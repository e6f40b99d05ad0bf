"""Networks that read a history: vectors of its events in, one vector of what the user is like out.

Each is written as small as its paper allows. All take events_btd (zeros where there is none) and
real_bt, True where there is an event, and return state_bd of `width` numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gru(nn.Module):
    """GRU4Rec's reader: the last state of a gated recurrent unit (Hidasi et al., 2016).

    Args:
        width: Of events and state.
        length: Places of a history; not needed here.
        dropout: Applied to the state.
    """

    def __init__(self, width: int, length: int, dropout: float) -> None:  # noqa: ARG002
        super().__init__()
        self.width = width
        self.gru = nn.GRU(width, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, events_btd: Tensor, real_bt: Tensor) -> Tensor:
        """state_bd; an empty history leaves the first state, which is zero."""
        first_b = real_bt.shape[1] - real_bt.sum(1)
        # Events to the left, so that the recurrence begins with one and not with padding.
        at_bt = (torch.arange(real_bt.shape[1]) + first_b[:, None]) % max(real_bt.shape[1], 1)
        moved_btd = events_btd.gather(1, at_bt[..., None].expand_as(events_btd))
        states_btd, _ = self.gru(moved_btd)
        last_b = (real_bt.sum(1) - 1).clamp(min=0)
        state_bd = states_btd[torch.arange(len(last_b)), last_b]
        kept_bd: Tensor = self.dropout(state_bd * real_bt.any(1, keepdim=True))
        return kept_bd


class Convolutions(nn.Module):
    """Caser's reader: convolutions over the history as an image (Tang and Wang, 2018).

    Horizontal filters span two to four successive events and are max-pooled over time, vertical
    ones weigh the places of the history; both, side by side, are the state. There is no vector of
    the user: users of the test part are new.

    Args:
        width: Of an event.
        length: Places of a history.
        dropout: Applied to the state.
    """

    _FILTERS, _HEIGHTS = 16, (2, 3, 4)

    def __init__(self, width: int, length: int, dropout: float) -> None:
        super().__init__()
        heights = [height for height in self._HEIGHTS if height <= length] or [length]
        self.horizontal = nn.ModuleList(nn.Conv1d(width, self._FILTERS, h) for h in heights)
        self.vertical = nn.Linear(length, 1)
        self.dropout = nn.Dropout(dropout)
        self.width = self._FILTERS * len(heights) + width

    def forward(self, events_btd: Tensor, real_bt: Tensor) -> Tensor:  # noqa: ARG002
        """state_bd."""
        events_bdt = events_btd.transpose(1, 2)
        pooled = [conv(events_bdt).relu().amax(-1) for conv in self.horizontal]
        weighed_bd = self.vertical(events_bdt).squeeze(-1).relu()
        state_bd: Tensor = self.dropout(torch.cat([*pooled, weighed_bd], dim=-1))
        return state_bd


class SelfAttention(nn.Module):
    """SASRec's reader: two blocks of causal self-attention (Kang and McAuley, 2018).

    The state is that of the last place. A learned beginning stands before the history; it is all
    that an empty one holds.

    Args:
        width: Of events and state.
        length: Places of a history.
        dropout: Applied to events, attention and feed-forward parts.
    """

    def __init__(self, width: int, length: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.places = nn.Parameter(torch.randn(length + 1, width) * 0.01)
        self.dropout = nn.Dropout(dropout)
        block = nn.TransformerEncoderLayer(
            width, 1, width, dropout, batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(width)
        self.blocks = nn.TransformerEncoder(block, 2, norm, enable_nested_tensor=False)
        self.register_buffer("later_tt", torch.ones(length + 1, length + 1).triu(1).bool())

    def forward(self, events_btd: Tensor, real_bt: Tensor) -> Tensor:
        """state_bd."""
        begun_btd = self.dropout(nn.functional.pad(events_btd, (0, 0, 1, 0)) + self.places)
        states_btd: Tensor = self.blocks(
            begun_btd,
            mask=self.get_buffer("later_tt"),
            src_key_padding_mask=nn.functional.pad(~real_bt, (1, 0)),
        )
        return states_btd[:, -1]
