"""What a backbone knows of titles: its hidden states where it is about to judge one."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from tallrec.llm.forward import last_hidden
from tallrec.llm.int8 import reading_in_int8
from tallrec.llm.lean_layers import lean_layers
from tallrec.progress import OnProgress, silent
from tallrec.prompts.answers import tokenize
from tallrec.prompts.text import quoted
from tallrec.types import FloatArray, Item

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def title_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    catalog: pl.DataFrame,
    *,
    domain: str,
    batch_tokens: int = 4096,
    int8: bool = False,
    on_progress: OnProgress = silent,
) -> FloatArray:
    """The last hidden states after `In my opinion, the movie "T" is a`.

    Args:
        model: A backbone.
        tokenizer: Its tokenizer.
        catalog: `item`, `title`, `creator` (null where unknown), n rows.
        domain: The noun for an item.
        batch_tokens: Tokens in one forward pass.
        int8: Whether linear layers multiply in eight bits, where the machine can.
        on_progress: Called after each batch with rows done and rows in all.

    Returns:
        Shape [n, width].
    """
    items = (Item(*row) for row in catalog.select("item", "title", "creator").iter_rows())
    texts = [f"In my opinion, the {domain} {quoted(item, 'by')} is a" for item in items]
    prompts = [tokens.ids for tokens in tokenize(tokenizer, texts)] if texts else []
    states = np.zeros((len(prompts), model.config.get_text_config().hidden_size))
    done = 0
    with lean_layers(model), reading_in_int8(model) if int8 else nullcontext():
        for rows, hidden_nd in last_hidden(model, prompts, batch_tokens):
            states[rows] = hidden_nd.double().cpu().numpy()
            done += len(rows)
            on_progress(done, len(prompts), "")
    return states
