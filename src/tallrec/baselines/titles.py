"""Titles as vectors of a BERT encoder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from tallrec.quiet import without_bars

_AT_ONCE = 256


@torch.no_grad()
def encode_titles(source: str | Path, titles: Sequence[str]) -> Tensor:
    """The mean of a title's last hidden states, scaled to length 1 (as sentence encoders do).

    Args:
        source: A folder or Hugging Face id of an encoder with its tokenizer.
        titles: What to encode.

    Returns:
        One row a title.

    Raises:
        ValueError: If there is no encoder there.
    """
    try:
        with without_bars() if Path(source).exists() else nullcontext():
            tokenizer = AutoTokenizer.from_pretrained(source)
            encoder = AutoModel.from_pretrained(source).eval()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{source} is no text encoder that can be loaded: {reason}") from error
    vectors = []
    for i in range(0, len(titles), _AT_ONCE):
        batch = tokenizer(
            list(titles[i : i + _AT_ONCE]), padding=True, truncation=True, return_tensors="pt"
        )
        hidden_btd = encoder(**batch).last_hidden_state
        real_bt1 = batch["attention_mask"][..., None]
        vectors.append((hidden_btd * real_bt1).sum(1) / real_bt1.sum(1))
    return torch.nn.functional.normalize(torch.cat(vectors), dim=-1)
