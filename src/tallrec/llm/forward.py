"""Hidden states of token rows: as a tree of shared prefixes, or padded where a model needs that."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from tallrec.llm.attention import Memory, Plan, attending_by_tree
from tallrec.llm.sharding import decode
from tallrec.llm.tree import build_tree, common_length
from tallrec.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Shape letters: b rows, t tokens, n wanted positions or flat tokens, d width.

_log = logging.getLogger(__name__)
_tried: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()
_PROBE = [[1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 6, 7]]


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model inside; adapters act in its layers either way."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    return cast("PreTrainedModel", inner)


def decoder_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model's layers without its head."""
    return cast("PreTrainedModel", base_of(model).base_model)


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Right-pads token rows to ids_bt. A causal model never looks at what stands to the right."""
    ids_bt = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for ids_t, row in zip(ids_bt, rows, strict=True):
        ids_t[: len(row)] = torch.tensor(row)
    return ids_bt


def hidden_at(model: PreTrainedModel | PeftModel, ids_bt: Tensor, at_n2: Tensor) -> Tensor:
    """Last hidden states at (row, position) pairs, hidden_nd; the head is not computed."""
    output = decode(base_of(model), input_ids=ids_bt, use_cache=False)
    hidden_btd: Tensor = output.last_hidden_state
    return hidden_btd[at_n2[:, 0], at_n2[:, 1]]


def hidden_by_tree(model: PreTrainedModel | PeftModel, plan: Plan) -> Tensor:
    """Last hidden states of a plan's tokens, hidden_nd, or of those it reads, hidden_rd.

    Inside `attending_by_tree`. Inside `lean_layers` the last layer may compute no others.
    """
    decoder, tree = decoder_of(model), plan.tree
    output = decode(
        base_of(model),
        input_ids=tree.ids_n[None].to(decoder.device),
        position_ids=tree.positions_n[None].to(decoder.device),
        use_cache=False,
        tree=plan,
    )
    hidden: Tensor = output.last_hidden_state[0]
    if plan.read is None or len(hidden) == len(plan.read):
        return hidden
    return hidden[plan.read]


def takes_trees(model: PreTrainedModel | PeftModel, longest: int) -> bool:
    """Whether rows of up to `longest` tokens can go through the model as a tree.

    A model is tried on a few tokens, both ways, when it is first asked about. Where it cannot, the
    log says why.
    """
    decoder = decoder_of(model)
    if decoder not in _tried:
        _tried[decoder] = _obstacle(model)
        if _tried[decoder]:
            _log.warning("%s; its rows are padded instead", _tried[decoder])
    window = _window(decoder)
    if not _tried[decoder] and window and longest > window:
        _log.warning(
            "%s looks back %d tokens only and a row has %d; its rows are padded instead",
            type(decoder).__name__,
            window,
            longest,
        )
        return False
    return not _tried[decoder]


def _window(decoder: PreTrainedModel) -> int | None:
    config = decoder.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    window = getattr(config, "sliding_window", None)
    return int(window) if window and "sliding_attention" in kinds else None


@torch.no_grad()
def _obstacle(model: PreTrainedModel | PeftModel) -> str:
    """Why a model cannot take trees; empty if it can."""
    decoder = decoder_of(model)
    name = type(decoder).__name__
    config = decoder.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if other := kinds - {"full_attention", "sliding_attention"}:
        return f"{name} has layers of {', '.join(sorted(other))}"
    if not decoder.is_backend_compatible():  # type: ignore[no-untyped-call]
        return f"{name} takes no other attention than its own"
    middle = config.vocab_size // 2  # the first tokens are special ones
    rows = [[middle + i for i in row] for row in _PROBE]
    at_n2 = torch.tensor([[b, t] for b, row in enumerate(rows) for t in range(len(row))])
    was_training = decoder.training
    decoder.eval()  # type: ignore[no-untyped-call]
    try:
        padded_nd = hidden_at(model, pad(rows).to(decoder.device), at_n2)
        tree = build_tree(rows)
        with attending_by_tree(decoder):
            flat_nd = hidden_by_tree(model, Plan(tree))[np.concatenate(tree.paths)]
    except (TypeError, NotImplementedError, ValueError, AttributeError) as error:
        return f"{name} does not take shared prefixes ({str(error).splitlines()[0]})"
    finally:
        decoder.train(was_training)
    # "not <=" rather than ">": nothing compares with what is not a number. Rounding adds up over
    # layers: SmolLM2's difference is 5 % in bfloat16, whose epsilon is 0.8 %.
    allowed = torch.finfo(padded_nd.dtype).eps ** 0.5
    if not (padded_nd - flat_nd).float().norm() <= allowed * padded_nd.float().norm():
        return f"{name} gives other answers when prefixes are shared"
    return ""


@torch.no_grad()
def last_hidden(
    model: PreTrainedModel | PeftModel, prompts: Sequence[list[int]], batch_tokens: int
) -> Iterator[tuple[IntArray, Tensor]]:
    """Hidden states after each prompt, batch by batch.

    As a tree, each distinct prefix of all prompts is computed once: keys and values of what the
    next batch begins with are kept from one batch to the next.

    Args:
        model: A backbone, with or without an adapter.
        prompts: Token rows.
        batch_tokens: Computed tokens in a batch; a longer row is a batch of its own.

    Yields:
        Row numbers and their hidden_nd.
    """
    if prompts and takes_trees(model, max(map(len, prompts))):
        yield from _last_by_tree(model, prompts, batch_tokens)
    else:
        yield from _last_padded(model, prompts, batch_tokens)


def _last_padded(
    model: PreTrainedModel | PeftModel, prompts: Sequence[list[int]], batch_tokens: int
) -> Iterator[tuple[IntArray, Tensor]]:
    for batch in batches([len(prompt) for prompt in prompts], batch_tokens):
        ids_bt = pad([prompts[i] for i in batch]).to(model.device)
        last = torch.tensor([[b, len(prompts[i]) - 1] for b, i in enumerate(batch)])
        yield batch, hidden_at(model, ids_bt, last.to(model.device))


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[IntArray]:
    """Row numbers in batches of similar length, at most `batch_tokens` padded tokens each.

    A row longer than that is a batch of its own. The longest come first, so that memory is
    needed at once or never.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        stop = start + max(1, batch_tokens // max(1, lengths[order[start]]))
        yield order[start:stop]
        start = stop


def _last_by_tree(
    model: PreTrainedModel | PeftModel, prompts: Sequence[list[int]], batch_tokens: int
) -> Iterator[tuple[IntArray, Tensor]]:
    order = np.array(sorted(range(len(prompts)), key=prompts.__getitem__))
    ordered = [prompts[i] for i in order]
    alike = [0, *map(common_length, ordered, ordered[1:])]
    n_new = np.array([len(row) for row in ordered]) - np.array(alike)
    memory: Memory = {}
    start = 0
    with attending_by_tree(decoder_of(model)):
        while start < len(order):
            stop = _batch_end(n_new, start, batch_tokens)
            tree = build_tree(ordered[start:stop], kept=ordered[start][: alike[start]])
            keep = tree.paths[-1][: alike[stop]] if stop < len(order) else tree.paths[-1][:0]
            ends = [path[-1] - tree.n_kept for path in tree.paths]
            read, at = np.unique(ends, return_inverse=True)
            plan = Plan(tree, memory, torch.from_numpy(keep), torch.from_numpy(read))
            yield order[start:stop], hidden_by_tree(model, plan)[at]
            start = stop


def _batch_end(n_new: IntArray, start: int, batch_tokens: int) -> int:
    """As many rows as fit the budget, and then those that are equal to the last one."""
    total = np.cumsum(n_new[start:])
    stop = start + max(1, int(np.searchsorted(total, batch_tokens, side="right")))
    while stop < len(n_new) and n_new[stop] == 0:
        stop += 1
    return stop
