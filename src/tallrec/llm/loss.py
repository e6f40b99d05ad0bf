"""A batch of token rows, and what tuning makes smaller on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tallrec.llm.scoring import head_logits, hidden_at, log_odds, pad
from tallrec.prompts.answers import Answers, TokenRow

if TYPE_CHECKING:
    from peft import PeftModel

# Shape letters as in `tallrec.llm.scoring`.
IGNORED = -100  # the label of a token that no loss counts, as in transformers


def answer_loss(model: PeftModel, batch: dict[str, Tensor], answers: Answers) -> Tensor:
    """Binary cross-entropy of the log-odds at every answer position of the rows.

    For a template with one answer this is the cross-entropy of Yes against No at the target; for
    `timeline` the answers of the history are supervised as well.
    """
    hidden_nd = hidden_at(model, batch["ids_bt"], batch["at_n2"])
    odds = log_odds(model, hidden_nd, answers)
    return torch.nn.functional.binary_cross_entropy_with_logits(odds, batch["likes_n"].float())


def token_loss(model: PeftModel, batch: dict[str, Tensor], _answers: Answers) -> Tensor:
    """Cross-entropy over the vocabulary of every token that `collate` has labelled.

    Labelled are the tokens of the response (`response`), or all of prompt and response as in the
    paper's released code (`all-tokens`).
    """
    wanted_bt = batch["labels_bt"][:, 1:]
    at_n2 = (wanted_bt != IGNORED).nonzero()  # the token before predicts the one that is wanted
    logits_nv = head_logits(model, hidden_at(model, batch["ids_bt"], at_n2))
    return torch.nn.functional.cross_entropy(logits_nv, wanted_bt[at_n2[:, 0], at_n2[:, 1]])


LOSSES: dict[str, Callable[[PeftModel, dict[str, Tensor], Answers], Tensor]] = {
    "answers": answer_loss,
    "response": token_loss,
    "all-tokens": token_loss,
}


def count_labels(batch: dict[str, Tensor], loss: str) -> int:
    """What a loss is the mean of."""
    if loss == "answers":
        return len(batch["likes_n"])
    return int((batch["labels_bt"][:, 1:] != IGNORED).sum())


def collate(rows: Sequence[TokenRow], loss: str) -> dict[str, Tensor]:
    """A batch of rows: ids_bt, at_n2 (row, position), likes_n and labels_bt.

    Args:
        rows: Token rows.
        loss: `response` labels the tokens after a row's last position, others all tokens.
    """
    ids_bt = pad([row.ids for row in rows])
    t = torch.arange(ids_bt.shape[1])
    lengths = torch.tensor([len(row.ids) for row in rows])
    starts = torch.tensor([row.positions[-1] + 1 if loss == "response" else 0 for row in rows])
    labelled_bt = (t >= starts[:, None]) & (t < lengths[:, None])
    at = [(b, position) for b, row in enumerate(rows) for position in row.positions]
    return {
        "ids_bt": ids_bt,
        "at_n2": torch.tensor(at),
        "likes_n": torch.tensor([bool(like) for row in rows for like in row.likes]),
        "labels_bt": ids_bt.masked_fill(~labelled_bt, IGNORED),
    }
