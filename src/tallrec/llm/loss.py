"""A batch of token rows, and what tuning makes smaller on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tallrec.llm.scoring import hidden_at, log_odds, pad
from tallrec.prompts.answers import Answers, TokenRow

if TYPE_CHECKING:
    from peft import PeftModel

# Shape letters as in `tallrec.llm.scoring`.


def answer_loss(model: PeftModel, batch: dict[str, Tensor], answers: Answers) -> Tensor:
    """Binary cross-entropy of the log-odds at every answer position of the rows.

    For a template with one answer this is the cross-entropy of Yes against No at the target; for
    `timeline` the answers of the history are supervised as well.
    """
    hidden_nd = hidden_at(model, batch["ids_bt"], batch["at_n2"])
    odds = log_odds(model, hidden_nd, answers)
    return torch.nn.functional.binary_cross_entropy_with_logits(odds, batch["likes_n"].float())


def all_tokens_loss(model: PeftModel, batch: dict[str, Tensor], _answers: Answers) -> Tensor:
    """Cross-entropy of every token of prompt and answer, as in the paper's released code."""
    loss = model(input_ids=batch["ids_bt"], labels=batch["labels_bt"], use_cache=False).loss
    assert isinstance(loss, Tensor)
    return loss


LOSSES: dict[str, Callable[[PeftModel, dict[str, Tensor], Answers], Tensor]] = {
    "answers": answer_loss,
    "all-tokens": all_tokens_loss,
}


def count_labels(batch: dict[str, Tensor], loss: str) -> int:
    """What a loss is the mean of."""
    if loss == "answers":
        return len(batch["likes_n"])
    return int((batch["labels_bt"][:, 1:] != -100).sum())


def collate(rows: Sequence[TokenRow], eos: int | None) -> dict[str, Tensor]:
    """A batch of rows: ids_bt, at_n2 (row, position), likes_n and labels_bt (-100 at padding)."""
    ids = [row.ids if eos is None else [*row.ids, eos] for row in rows]
    ids_bt = pad(ids)
    lengths = torch.tensor([len(row) for row in ids])
    inside_bt = torch.arange(ids_bt.shape[1]) < lengths[:, None]
    at = [(b, position) for b, row in enumerate(rows) for position in row.positions]
    return {
        "ids_bt": ids_bt,
        "at_n2": torch.tensor(at),
        "likes_n": torch.tensor([bool(like) for row in rows for like in row.likes]),
        "labels_bt": ids_bt.masked_fill(~inside_bt, -100),
    }
