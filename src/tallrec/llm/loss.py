"""A batch of token rows, and what tuning makes smaller on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tallrec.llm.attention import Plan
from tallrec.llm.forward import hidden_at, hidden_by_tree, pad
from tallrec.llm.scoring import head_logits, log_odds
from tallrec.llm.tree import build_tree
from tallrec.prompts.answers import Answers, TokenRow

if TYPE_CHECKING:
    from peft import PeftModel

# Shape letters as in `tallrec.llm.scoring`.


def answer_loss(model: PeftModel, batch: dict[str, Any], answers: Answers) -> Tensor:
    """Binary cross-entropy of the log-odds at every answer position of the rows.

    For a template with one answer this is the cross-entropy of Yes against No at the target; for
    `timeline` the answers of the history are supervised as well.
    """
    odds = log_odds(model, hidden_of(model, batch), answers)
    return torch.nn.functional.binary_cross_entropy_with_logits(odds, batch["targets_n"].float())


def token_loss(model: PeftModel, batch: dict[str, Any], answers: Answers) -> Tensor:  # noqa: ARG001 - as all losses
    """Cross-entropy over the vocabulary of every token that `collate` has labelled.

    Labelled are the tokens of the response (`response`), or all of prompt and response as in the
    paper's released code (`all-tokens`).
    """
    logits_nv = head_logits(model, hidden_of(model, batch))
    return torch.nn.functional.cross_entropy(logits_nv, batch["targets_n"])


def hidden_of(model: PeftModel, batch: dict[str, Any]) -> Tensor:
    """Hidden states where the batch has targets, hidden_nd."""
    if "plan" in batch:
        return hidden_by_tree(model, batch["plan"])[batch["at_n"]]
    return hidden_at(model, batch["ids_bt"], batch["at_n2"])


LOSSES: dict[str, Callable[..., Tensor]] = {
    "answers": answer_loss,
    "response": token_loss,
    "all-tokens": token_loss,
}


@contextmanager
def computing_loss(model: PeftModel, loss: str, answers: Answers) -> Iterator[None]:
    """Inside, a call of the model on a batch gives its loss.

    Torch's DDP adds up the gradients of what a call of the model has computed, and of nothing else.
    """
    model.forward = partial(LOSSES[loss], model, answers=answers)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.forward


def collate(rows: Sequence[TokenRow], loss: str, *, by_tree: bool) -> dict[str, Any]:
    """A batch of rows and its targets.

    Args:
        rows: Token rows.
        loss: `answers`: each answer is a target, a like or not. `response`: the tokens after a
            row's last position. `all-tokens`: every token but the first.
        by_tree: Whether rows share what they begin with alike.

    Returns:
        `targets_n`; and by tree `plan` and `at_n`, places in what it reads, else `ids_bt` and
        `at_n2`, row and position.
    """
    if loss == "answers":
        at = [(b, position) for b, row in enumerate(rows) for position in row.positions]
        targets_n = torch.tensor([bool(like) for row in rows for like in row.likes])
    else:  # the token before predicts a token
        starts = [row.positions[-1] if loss == "response" else 0 for row in rows]
        at = [(b, t) for b, row in enumerate(rows) for t in range(starts[b], len(row.ids) - 1)]
        targets_n = torch.tensor([rows[b].ids[t + 1] for b, t in at])
    ids = [row.ids for row in rows]
    if not by_tree:
        return {"ids_bt": pad(ids), "at_n2": torch.tensor(at), "targets_n": targets_n}
    tree = build_tree(ids, few_sizes=True)
    read, at_n = np.unique([tree.paths[b][t] for b, t in at], return_inverse=True)
    plan = Plan(tree, read=torch.from_numpy(read))
    return {"plan": plan, "at_n": torch.from_numpy(at_n), "targets_n": targets_n}
