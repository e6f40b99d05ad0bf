"""Log-odds of Yes at an answer position, read from as little of the model as that needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from tallrec.llm.forward import base_of, hidden_at, last_hidden
from tallrec.llm.int8 import reading_in_int8
from tallrec.llm.lean_layers import lean_layers
from tallrec.llm.merge import merged
from tallrec.llm.sharding import put_back, whole
from tallrec.progress import OnProgress, silent
from tallrec.prompts import Template
from tallrec.prompts.answers import Answers, TokenRow, encode
from tallrec.types import FloatArray, Sample, Samples

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Shape letters: b rows, t tokens, n answer positions, d width, v vocabulary.


def head_logits(
    model: PreTrainedModel | PeftModel, hidden_nd: Tensor, tokens: Sequence[int] | None = None
) -> Tensor:
    """Logits of some tokens (all if None) in float32, logits_nv.

    bfloat16 logits of 20 have steps of 0.125, so the head is computed in float32. What some
    architectures do to logits after the head (scaling, soft-capping) is done here too;
    `check_readable` holds it against the model's own logits.
    """
    base = base_of(model)
    head: torch.nn.Linear = base.get_output_embeddings()  # type: ignore[no-untyped-call]
    rows = slice(None) if tokens is None else list(tokens)
    logits = hidden_nd.float() @ whole(head.weight)[rows].float().T
    if getattr(head, "bias", None) is not None:
        logits = logits + head.bias[rows].float()
    config = base.config.get_text_config()
    if getattr(config, "logit_scale", None) is not None:  # Cohere
        logits = logits * config.logit_scale
    if getattr(config, "logits_scaling", None) is not None:  # Granite
        logits = logits / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    return logits if cap is None else torch.tanh(logits / cap) * cap


@torch.no_grad()
def check_readable(model: PreTrainedModel, name: str) -> None:
    """Proves on a few tokens that positions and logits are read as the model means them.

    Args:
        model: A causal language model in evaluation mode.
        name: What to call it in messages.

    Raises:
        ValueError: If the model looks ahead (an encoder), or does something to its logits that
            `head_logits` does not know.
    """
    ids_bt = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=model.device)
    at_n2 = torch.tensor([[b, t] for b in (0, 1) for t in (0, 1, 2)], device=model.device)
    hidden_nd = hidden_at(model, ids_bt, at_n2)
    one_nd, other_nd = hidden_nd.chunk(2)
    # "not <=" rather than ">": nothing compares with what is not a number. A bfloat16 has 8 bits.
    if not (one_nd - other_nd).abs().max() <= 0.02 * one_nd.abs().max():
        raise ValueError(
            f"{name} ({type(model).__name__}) sees what comes after a token or is not finite; "
            f"a causal language model is wanted"
        )
    own_nv = model(input_ids=ids_bt, use_cache=False).logits[:, :3].flatten(0, 1).float()
    if not (head_logits(model, hidden_nd) - own_nv).abs().max() <= 0.02 * own_nv.abs().max():
        raise ValueError(
            f"{name} ({type(model).__name__}) changes its logits after the head in a way that "
            f"tallrec does not know; use another backbone"
        )


def log_odds(model: PreTrainedModel | PeftModel, hidden_nd: Tensor, answers: Answers) -> Tensor:
    """Log P(Yes) - log P(No) = logit(Yes) - logit(No), shape [n]."""
    logits = head_logits(model, hidden_nd, (answers.yes, answers.no))
    return logits[:, 0] - logits[:, 1]


def released(model: PreTrainedModel | PeftModel, hidden_nd: Tensor, answers: Answers) -> Tensor:
    """P(Yes) - P(No) over the whole vocabulary, shape [n].

    The paper's released code takes a softmax over the vocabulary and a second one over the two
    probabilities; the log-odds of that second softmax are this difference.
    """
    probabilities = head_logits(model, hidden_nd).softmax(dim=-1)
    return probabilities[:, answers.yes] - probabilities[:, answers.no]


ORDERINGS: dict[str, Callable[..., Tensor]] = {"log-odds": log_odds, "released": released}


@torch.no_grad()
def score_rows(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[TokenRow],
    answers: Answers,
    *,
    ordering: str = "log-odds",
    batch_tokens: int = 4096,
    int8: bool = False,
    on_progress: OnProgress = silent,
) -> FloatArray:
    """Scores the target's answer of each row.

    What rows begin with alike (a user's history, when a catalogue is ranked) is computed once. In
    float32 a score depends on its batch by less than 1e-4. bfloat16 rounds differently in batches
    of another shape: SmolLM2's log-odds move by up to about 0.1.

    Args:
        model: A backbone, with or without an adapter.
        rows: Tokenized samples.
        answers: The verbalizer.
        ordering: `log-odds`, or `released` (see `released`).
        batch_tokens: Tokens in one forward pass; changes memory and speed, not scores.
        int8: Whether linear layers multiply in eight bits, where the machine can; see
            `tallrec.llm.int8`.
        on_progress: Called after each batch with rows done and rows in all.

    Returns:
        One score a row, shape [n], in the order of the rows.

    Raises:
        ValueError: If the ordering is unknown.
    """
    if ordering not in ORDERINGS:
        raise ValueError(f"ordering must be one of {', '.join(ORDERINGS)}; got {ordering!r}")
    was_training = model.training
    model.eval()
    scores = np.full(len(rows), np.nan)
    prompts = [row.prompt for row in rows]
    done = 0
    try:
        eight_bits = reading_in_int8(model) if int8 else nullcontext()
        with merged(model), lean_layers(model), eight_bits:
            for batch, hidden_nd in last_hidden(model, prompts, batch_tokens):
                batch_scores = ORDERINGS[ordering](model, hidden_nd, answers)
                scores[batch] = batch_scores.double().cpu().numpy()
                done += len(batch)
                on_progress(done, len(rows), "")
    finally:
        model.train(was_training)
        put_back(model)
    return scores


@dataclass(frozen=True)
class LlmScorer:
    """A language model as a `Scorer`: the log-odds of Yes after a sample's prompt.

    Attributes:
        model: A backbone, with or without an adapter.
        tokenizer: Its tokenizer.
        template: How a sample becomes text.
        answers: The verbalizer of that tokenizer and template.
        domain: The noun for an item.
        max_tokens: The longest row; longer ones lose their oldest history.
        ordering: `log-odds` or `released`.
        batch_tokens: Tokens in one forward pass.
        int8: Whether linear layers multiply in eight bits.
        on_progress: Called after each batch.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    template: Template
    answers: Answers
    domain: str
    max_tokens: int
    ordering: str = "log-odds"
    batch_tokens: int = 4096
    int8: bool = False
    on_progress: OnProgress = silent

    def encode(self, samples: Iterable[Sample]) -> list[TokenRow]:
        """Tokenizes samples as this scorer reads them."""
        return encode(
            self.tokenizer,
            self.template,
            self.answers,
            samples,
            domain=self.domain,
            max_tokens=self.max_tokens,
        )

    def score(self, rows: Sequence[TokenRow]) -> FloatArray:
        """Log-odds of a like for each encoded sample, shape [n]."""
        return score_rows(
            self.model,
            rows,
            self.answers,
            ordering=self.ordering,
            batch_tokens=self.batch_tokens,
            int8=self.int8,
            on_progress=self.on_progress,
        )

    def __call__(self, samples: Samples) -> FloatArray:
        """Log-odds of a like for each sample, shape [n]."""
        return self.score(self.encode(samples))
