"""Attention over a `Tree`, through transformers' attention interface.

On a GPU that is FlexAttention (`tallrec.llm.flex`), on a CPU with AVX2 a compiled loop
(`tallrec.llm.kernels.tree_attention`). Elsewhere the scores of a block are batched matrix products
(`tallrec.llm.block_rows`). Gradients compute them again; nothing of their size is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import AttentionInterface

from tallrec.llm import flex
from tallrec.llm.block_rows import BlockRows, reused_memory
from tallrec.llm.fused import kernels_for, kernels_of
from tallrec.llm.runs import Runs, runs_of
from tallrec.llm.tree import Block, Tree, reading

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel

# Shape letters as in `tallrec.llm.block_rows`.

NAME = "tallrec-tree"
_UNKNOWN = ("softcap", "s_aux", "position_bias")  # what some families do to scores
Memory = dict[int, tuple[Tensor, ...]]  # keys and values, [c, g, d], by layer


class Plan:
    """A tree made ready for the heads of a model.

    Args:
        tree: What attends to what.
        memory: By layer, keys and values of the tree's kept tokens; those of `keep` take their
            place. Without it nothing is kept.
        keep: Which tokens to keep, counted as in `Tree.paths`.
        read: Flat tokens of which last hidden states are wanted, in ascending order; else of all.
    """

    def __init__(
        self,
        tree: Tree,
        memory: Memory | None = None,
        keep: Tensor | None = None,
        read: Tensor | None = None,
    ) -> None:
        self.tree, self.memory, self.keep, self.read = tree, memory, keep, read
        self._rows: dict[tuple[int, ...], tuple[list[BlockRows], Tensor]] = {}
        self._runs: dict[int, Runs] = {}
        self._masks: dict[torch.device, BlockMask] = {}

    def mask(self, device: torch.device) -> BlockMask:
        """What each token sees, for FlexAttention."""
        if device not in self._masks:
            self._masks[device] = flex.tree_mask(self.tree, device)
        return self._masks[device]

    def _blocks(self, n: int) -> list[Block]:
        """Those with n queries: of all flat tokens, or of those alone that are read."""
        some = self.read is not None and n < len(self.tree.ids_n)
        return reading(self.tree, cast("Tensor", self.read)) if some else self.tree.blocks

    def runs(self, q_nhd: Tensor) -> Runs:
        """Which query sees what."""
        n = len(q_nhd)
        if n not in self._runs:
            self._runs[n] = runs_of(self._blocks(n))
        return self._runs[n]

    def rows(self, q_nhd: Tensor, k_cgd: Tensor) -> tuple[list[BlockRows], Tensor]:
        """The blocks' rows, and for each row of [n h, d] which of all their queries it is."""
        n, h, g = key = (*q_nhd.shape[:2], k_cgd.shape[1])
        if key not in self._rows:
            blocks = [BlockRows(block, h, g, q_nhd) for block in self._blocks(n)]
            back = torch.empty(n * h, dtype=torch.long)
            offset = 0
            for rows in blocks:
                places = torch.arange(offset, offset + len(rows.q))
                real = slice(None) if rows.real is None else rows.real.cpu()
                back[rows.q.cpu()[real]] = places[real]
                offset += len(rows.q)
            self._rows[key] = blocks, back.to(q_nhd.device)
        return self._rows[key]

    def kept(self, layer: int) -> tuple[Tensor, ...]:
        """Keys and values of kept tokens, each [c, g, d], if there are any."""
        return self.memory.get(layer, ()) if self.memory is not None else ()

    def remember(self, layer: int, *kv_cgd: Tensor) -> None:
        """Takes those to keep out of keys and values of kept and new tokens."""
        if self.memory is not None and self.keep is not None:
            keep = self.keep.to(kv_cgd[0].device)
            self.memory[layer] = tuple(x.index_select(0, keep) for x in kv_cgd)


class _InOnePass(torch.autograd.Function):
    """softmax(Q K') V of every token over its ancestors and itself, by a compiled loop."""

    @staticmethod
    def forward(
        ctx: Any, q_nhd: Tensor, k_cgd: Tensor, v_cgd: Tensor, plan: Plan, scaling: float
    ) -> Tensor:
        kernels, ctx.runs, ctx.scaling = kernels_of(q_nhd), plan.runs(q_nhd), scaling
        q_nhd, k_cgd, v_cgd = (x.contiguous() for x in (q_nhd, k_cgd, v_cgd))
        keeps = any(ctx.needs_input_grad)
        out_nhd, bases_nh = kernels.attend(q_nhd, k_cgd, v_cgd, ctx.runs, scaling, keeps=keeps)
        ctx.save_for_backward(q_nhd, k_cgd, v_cgd, bases_nh)
        return cast("Tensor", out_nhd)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kernels, grad_nhd = kernels_of(grads[0]), grads[0].contiguous()
        saved = ctx.saved_tensors
        dq_nhd, dk_cgd, dv_cgd = kernels.attend_backward(grad_nhd, *saved, ctx.runs, ctx.scaling)
        return dq_nhd, dk_cgd.to(grad_nhd.dtype), dv_cgd.to(grad_nhd.dtype), None, None


class _ByProducts(torch.autograd.Function):
    """softmax(Q K') V of every token over its ancestors and itself, block by block."""

    @staticmethod
    def forward(
        ctx: Any, q_nhd: Tensor, k_cgd: Tensor, v_cgd: Tensor, plan: Plan, scaling: float
    ) -> Tensor:
        blocks, back = plan.rows(q_nhd, k_cgd)
        ctx.save_for_backward(q_nhd, k_cgd, v_cgd)
        ctx.plan, ctx.scaling = plan, scaling
        sizes = [len(rows.q) for rows in blocks]
        out_rd = blocks[0].scratch("out", q_nhd, sum(sizes), q_nhd.shape[-1])
        ctx.bases = []
        for rows, part_rd in zip(blocks, torch.split(out_rd, sizes), strict=True):
            weights, bases = rows.weights(rows.queries("q", q_nhd), rows.keys("k", k_cgd), scaling)
            rows.sums(weights, rows.keys("v", v_cgd), part_rd)
            ctx.bases.append(bases)
        return out_rd.index_select(0, back).view_as(q_nhd)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_nhd, k_cgd, v_cgd = ctx.saved_tensors
        blocks, back = ctx.plan.rows(q_nhd, k_cgd)
        dk_cgd, dv_cgd = (
            torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k_cgd, v_cgd)
        )
        sizes = [len(rows.q) for rows in blocks]
        dq_rd = blocks[0].scratch("out", q_nhd, sum(sizes), q_nhd.shape[-1])
        parts = zip(blocks, torch.split(dq_rd, sizes), ctx.bases, strict=True)
        for rows, part_rd, bases in parts:
            q_brd, keys = rows.queries("q", q_nhd), rows.keys("k", k_cgd)
            do_brd, values = rows.queries("do", grads[0]), rows.keys("v", v_cgd)
            if rows.real is not None:
                do_brd *= rows.real.view(*do_brd.shape[:2], 1)
            weights, slopes = rows.slopes(q_brd, keys, do_brd, values, bases, ctx.scaling)
            rows.sums(slopes, keys, part_rd)
            rows.add(dv_cgd, weights, do_brd)
            rows.add(dk_cgd, slopes, q_brd)
        dq_nhd = dq_rd.index_select(0, back).view_as(q_nhd)
        return dq_nhd, dk_cgd.to(k_cgd.dtype), dv_cgd.to(v_cgd.dtype), None, None


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - the tree tells
    *,
    tree: Plan,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: [1, h, n, d] in, [1, n, h, d] out.

    Raises:
        NotImplementedError: If the model's attention is of another kind.
    """
    unknown = [name for name in _UNKNOWN if kwargs.get(name) is not None]
    if unknown or dropout:
        raise NotImplementedError(f"its attention has {', '.join(unknown) or 'dropout'}")
    q_nhd, k_ngd, v_ngd = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    layer = cast("int", getattr(module, "layer_idx", 0))
    if kept := tree.kept(layer):
        k_ngd, v_ngd = (torch.cat(pair) for pair in zip(kept, (k_ngd, v_ngd), strict=True))
    tree.remember(layer, k_ngd, v_ngd)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    heads = q_nhd.shape[1], k_ngd.shape[1], q_nhd.shape[2]
    if flex.works(query.device, query.dtype, *heads):
        mask = tree.mask(query.device)
        out_nhd = flex.attend(module, q_nhd, k_ngd, v_ngd, mask, scaling)
    else:
        kernels = kernels_for(q_nhd)
        attend = _InOnePass if kernels and kernels.attends(q_nhd) else _ByProducts
        out_nhd = attend.apply(q_nhd, k_ngd, v_ngd, tree, scaling)  # type: ignore[no-untyped-call]
    return out_nhd[None], None


AttentionInterface.register(NAME, tree_attention)


@contextmanager
def attending_by_tree(decoder: PreTrainedModel) -> Iterator[None]:
    """Inside, the decoder takes one flat row and `tree=Plan(...)`, and nothing else."""
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation(NAME)
    try:
        with reused_memory():
            yield
    finally:
        decoder.set_attn_implementation(before)
