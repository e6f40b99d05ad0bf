"""Prompts with a common beginning: it goes through the model once, and each continues from there.

Ranking a catalogue for one user asks the same history about every item: of SmolLM2's 228 tokens a
movie, 209 are the same for all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_MIN_ROWS = 8  # with fewer, one pass over whole prompts is as fast
_CACHED_COST = 4  # this many cached tokens take about the memory of one that is computed


@dataclass(frozen=True)
class Prefix:
    """The common beginning of prompts, as keys and values of every layer.

    Attributes:
        length: Its tokens.
        cache: Its keys and values, batch size 1.
    """

    length: int
    cache: DynamicCache

    def repeated(self, n: int) -> DynamicCache:
        """A cache for a batch of `n` rows to grow; it shares this one's memory until it does."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in cast("list[DynamicLayer]", cache.layers):
            if layer.keys is not None and layer.values is not None:
                layer.keys = layer.keys.expand(n, -1, -1, -1)
                layer.values = layer.values.expand(n, -1, -1, -1)
        return cache

    def cost(self, prompt: Sequence[int]) -> int:
        """What a prompt takes of a batch's memory, in tokens computed."""
        return max(len(prompt) - self.length, len(prompt) // _CACHED_COST)


def shared_length(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with, each keeping one of its own; 0 if not worth sharing.

    It is worth it from eight prompts on whose common beginning is half of their mean length.
    """
    if len(prompts) < _MIN_ROWS:
        return 0
    first, last = min(prompts), max(prompts)  # all others lie between, so they share it too
    shared = next(
        (i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]),
        len(first),
    )
    shared = min(shared, min(map(len, prompts)) - 1)
    return shared if 2 * shared * len(prompts) >= sum(map(len, prompts)) else 0


def compute_prefix(decoder: PreTrainedModel, ids: Sequence[int]) -> Prefix | None:
    """Runs a common beginning through the decoder.

    Args:
        decoder: The layers of a language model, without its head.
        ids: The common beginning.

    Returns:
        None if the model's memory of a text is not keys and values alone (state space models).
    """
    cache = DynamicCache(config=decoder.config)
    if {type(layer) for layer in cache.layers} - {DynamicLayer, DynamicSlidingWindowLayer}:
        return None
    ids_1t = torch.tensor([list(ids)], device=decoder.device)
    decoder(input_ids=ids_1t, past_key_values=cache, use_cache=True)
    return Prefix(len(ids), cache) if cache.get_seq_length() == len(ids) else None


def hidden_after(decoder: PreTrainedModel, prefix: Prefix, ids_bt: Tensor) -> Tensor:
    """Last hidden states of rows that continue the prefix, hidden_btd."""
    cache = prefix.repeated(len(ids_bt))
    output = decoder(input_ids=ids_bt, past_key_values=cache, use_cache=True)
    return cast("Tensor", output.last_hidden_state)
