"""Attention over a `Tree`, through transformers' attention interface.

On a GPU that is FlexAttention (`tallrec.llm.flex`). Elsewhere the scores of a block are batched
matrix products, which in bfloat16 on a CPU take less than half the time of torch's fused attention.
Gradients compute them again; nothing of their size is stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor
from transformers import AttentionInterface

from tallrec.llm import flex
from tallrec.llm.fused import kernels_for
from tallrec.llm.tree import Block, Tree, reading

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel

# Shape letters: n flat tokens, c kept and flat tokens, h heads, g heads of keys, d width of a head;
# of a block: m runs, q and k their queries and keys, s shared keys, b = g m, r = (h / g) q.

NAME = "tallrec-tree"
_UNKNOWN = ("softcap", "s_aux", "position_bias")  # what some families do to scores
Memory = dict[int, tuple[Tensor, ...]]  # keys and values, [c, g, d], by layer
_Pair: TypeAlias = tuple[Tensor, Tensor]  # of own keys, [b, r, k], and shared ones, [g, m r, s]


class _Scratch:
    """Memory for what passes, by name; each use overwrites what was there.

    Blocks differ in size. Were their tensors new ones, what the layers keep for their gradients
    would lie scattered among them, with holes that nothing fits.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def __call__(self, name: str, like: Tensor, *shape: int) -> Tensor:
        n = math.prod(shape)
        if name not in self._held or self._held[name].numel() < n:
            self._held[name] = like.new_empty(n)
        return self._held[name][:n].view(shape)


_scratch: ContextVar[_Scratch] = ContextVar("scratch")


class _Rows:
    """A block's tokens as rows of queries ([n h, d]) and of keys and values ([c g, d])."""

    def __init__(self, block: Block, h: int, g: int, like: Tensor) -> None:
        self.scratch = _scratch.get()
        m, n_q = block.q_mq.shape
        self.shape = (g, m, h // g, n_q)  # of the queries
        heads = torch.arange(h).view(g, 1, h // g, 1)
        groups = torch.arange(g).view(g, 1, 1)
        self.q = (block.q_mq[:, None] * h + heads).flatten().to(like.device)
        self.k = (block.k_mk * g + groups).flatten().to(like.device)
        self.s = (block.shared_s * g + groups).flatten().to(like.device)
        seen = block.seen_mq.to(like.device, torch.int32)
        self.seen = seen[:, None].expand(self.shape).contiguous().view(-1, 1)
        real = block.real_mq[:, None].expand(self.shape).flatten()
        self.real = None if real.all() else real.to(like.device)

    def queries(self, name: str, x_nhd: Tensor) -> Tensor:
        """x_brd."""
        g, m, per_group, n_q = self.shape
        return self._taken(name, x_nhd, self.q).view(g * m, per_group * n_q, -1)

    def keys(self, name: str, x_cgd: Tensor) -> _Pair:
        """x_bkd of the runs' own keys and x_gsd of the shared ones."""
        (g, m), d = self.shape[:2], x_cgd.shape[-1]
        own = self._taken(name, x_cgd, self.k).view(g * m, -1, d)
        if not len(self.s):
            return own, x_cgd.new_empty(g, 0, d)
        return own, self._taken(name + "s", x_cgd, self.s).view(g, -1, d)

    def _taken(self, name: str, x_nhd: Tensor, rows: Tensor) -> Tensor:
        d = x_nhd.shape[-1]
        out = self.scratch(name, x_nhd, len(rows), d)
        return torch.index_select(x_nhd.reshape(-1, d), 0, rows, out=out)

    def products(self, name: str, x_brd: Tensor, keys: _Pair) -> _Pair:
        """Of each query with its own keys, [b, r, k], and with the shared ones, [g, m r, s]."""
        own_bkd, shared_gsd = keys
        x_grd = x_brd.view(len(shared_gsd), -1, x_brd.shape[-1])
        own = self.scratch(name, x_brd, *x_brd.shape[:2], own_bkd.shape[1])
        shared = self.scratch(name + "s", x_brd, *x_grd.shape[:2], shared_gsd.shape[1])
        torch.bmm(x_brd, own_bkd.transpose(1, 2), out=own)
        if len(self.s):
            torch.bmm(x_grd, shared_gsd.transpose(1, 2), out=shared)
        return own, shared

    def weights(self, q_brd: Tensor, keys: _Pair, scaling: float) -> _Pair:
        """Softmax of the scores, over own and shared keys together."""
        own, shared = self.products("weights", q_brd, keys)
        kernels = kernels_for(own)
        softmax_ = kernels.softmax_ if kernels else _softmax_
        softmax_(own, shared, self.seen, scaling)
        return own, shared

    def slopes(self, weights: _Pair, do_brd: Tensor, values: _Pair, scaling: float) -> _Pair:
        """The gradients of the scores."""
        slopes = self.products("slopes", do_brd, values)
        kernels = kernels_for(do_brd)
        softmax_backward_ = kernels.softmax_backward_ if kernels else _softmax_backward_
        softmax_backward_(*weights, *slopes, scaling)
        return slopes

    def sums(self, weights: _Pair, keys: _Pair, out: Tensor) -> None:
        """Of what belongs to the keys, weighted, for each query: into out, [b r, d]."""
        (own, shared), (x_bkd, x_gsd) = weights, keys
        torch.bmm(own, x_bkd, out=out.view(*own.shape[:2], -1))
        if len(self.s):
            out.view(*shared.shape[:2], -1).baddbmm_(shared, x_gsd)

    def add(self, sum_cgd: Tensor, weights: _Pair, x_brd: Tensor) -> None:
        """Adds to each key what belongs to its queries, weighted; many runs see the same keys."""
        own, shared = weights
        sum_cd = sum_cgd.view(-1, sum_cgd.shape[-1])
        x_grd = x_brd.view(len(shared), -1, x_brd.shape[-1])
        pairs = [(own, x_brd, self.k), (shared, x_grd, self.s)]
        for w, x, rows in pairs if len(self.s) else pairs[:1]:
            part = self.scratch("part", x, len(w), w.shape[2], x.shape[2])
            torch.bmm(w.transpose(1, 2), x, out=part)
            if kernels := kernels_for(part):
                kernels.add_rows_(sum_cd, rows, part)
            else:
                sum_cd.index_add_(0, rows, part.flatten(0, 1).float())


def _softmax_(own: Tensor, shared: Tensor, seen: Tensor, scaling: float) -> None:
    """As `kernels.softmax_`, by torch."""
    own_rk, shared_rs = own.view(len(seen), -1), shared.view(len(seen), -1)
    unseen = torch.arange(own_rk.shape[1], device=own.device) >= seen
    scores = torch.cat([own_rk.masked_fill(unseen, -torch.inf), shared_rs], dim=1)
    weights = scores.mul_(scaling).softmax(dim=1)
    own_rk.copy_(weights[:, : own_rk.shape[1]])
    shared_rs.copy_(weights[:, own_rk.shape[1] :])


def _softmax_backward_(
    own: Tensor, shared: Tensor, d_own: Tensor, d_shared: Tensor, scaling: float
) -> None:
    """As `kernels.softmax_backward_`, by torch."""
    rows = own.shape[:-1].numel()
    pairs = [(p.view(rows, -1), d.view(rows, -1)) for p, d in ((own, d_own), (shared, d_shared))]
    drift_pr1 = torch.stack([(p.float() * d.float()).sum(1, keepdim=True) for p, d in pairs])
    for p, d in pairs:
        d.sub_(drift_pr1.sum(0)).mul_(p).mul_(scaling)


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
        self._rows: dict[tuple[int, ...], tuple[list[_Rows], Tensor]] = {}
        self._masks: dict[torch.device, BlockMask] = {}

    def mask(self, device: torch.device) -> BlockMask:
        """What each token sees, for FlexAttention."""
        if device not in self._masks:
            self._masks[device] = flex.tree_mask(self.tree, device)
        return self._masks[device]

    def rows(self, q_nhd: Tensor, k_cgd: Tensor) -> tuple[list[_Rows], Tensor]:
        """The blocks' rows, and for each row of [n h, d] which of all their queries it is.

        Queries are those of all flat tokens, or of those alone that are read.
        """
        n, h, g = key = (*q_nhd.shape[:2], k_cgd.shape[1])
        if key not in self._rows:
            some = self.read is not None and n < len(self.tree.ids_n)
            chosen = reading(self.tree, cast("Tensor", self.read)) if some else self.tree.blocks
            blocks = [_Rows(block, h, g, q_nhd) for block in chosen]
            back = torch.empty(n * h, dtype=torch.long)
            offset = 0
            for rows in blocks:
                places = torch.arange(offset, offset + len(rows.q))
                real = slice(None) if rows.real is None else rows.real.cpu()
                back[rows.q.cpu()[real]] = places[real]
                offset += len(rows.q)
            self._rows[key] = blocks, back.to(q_nhd.device)
        return self._rows[key]

    def remember(self, layer: int, *kv_ngd: Tensor) -> tuple[Tensor, ...]:
        """Keys and values of kept and new tokens, each [c, g, d]."""
        if self.memory is None or self.keep is None:
            return kv_ngd
        if layer in self.memory:
            kept = self.memory[layer]
            kv_ngd = tuple(torch.cat(pair) for pair in zip(kept, kv_ngd, strict=True))
        keep = self.keep.to(kv_ngd[0].device)
        self.memory[layer] = tuple(x.index_select(0, keep) for x in kv_ngd)
        return kv_ngd


class _TreeAttention(torch.autograd.Function):
    """softmax(Q K') V of every token over its ancestors and itself."""

    @staticmethod
    def forward(
        ctx: Any, q_nhd: Tensor, k_cgd: Tensor, v_cgd: Tensor, plan: Plan, scaling: float
    ) -> Tensor:
        blocks, back = plan.rows(q_nhd, k_cgd)
        ctx.save_for_backward(q_nhd, k_cgd, v_cgd)
        ctx.plan, ctx.scaling = plan, scaling
        sizes = [len(rows.q) for rows in blocks]
        out_rd = blocks[0].scratch("out", q_nhd, sum(sizes), q_nhd.shape[-1])
        for rows, part_rd in zip(blocks, torch.split(out_rd, sizes), strict=True):
            weights = rows.weights(rows.queries("q", q_nhd), rows.keys("k", k_cgd), scaling)
            rows.sums(weights, rows.keys("v", v_cgd), part_rd)
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
        for rows, part_rd in zip(blocks, torch.split(dq_rd, sizes), strict=True):
            q_brd, keys = rows.queries("q", q_nhd), rows.keys("k", k_cgd)
            do_brd, values = rows.queries("do", grads[0]), rows.keys("v", v_cgd)
            if rows.real is not None:
                do_brd *= rows.real.view(*do_brd.shape[:2], 1)
            weights = rows.weights(q_brd, keys, ctx.scaling)
            slopes = rows.slopes(weights, do_brd, values, ctx.scaling)
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
    q_nhd, k_ngd, v_ngd = (x[0].transpose(0, 1) for x in (query, key, value))
    if tree.memory is not None:
        k_ngd, v_ngd = tree.remember(cast("int", module.layer_idx), k_ngd, v_ngd)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    heads = q_nhd.shape[1], k_ngd.shape[1], q_nhd.shape[2]
    if flex.works(query.device, query.dtype, *heads):
        mask = tree.mask(query.device)
        out_nhd = flex.attend(module, q_nhd, k_ngd, v_ngd, mask, scaling)
    else:
        out_nhd = _TreeAttention.apply(q_nhd, k_ngd, v_ngd, tree, scaling)  # type: ignore[no-untyped-call]
    return out_nhd[None], None


AttentionInterface.register(NAME, tree_attention)


@contextmanager
def attending_by_tree(decoder: PreTrainedModel) -> Iterator[None]:
    """Inside, the decoder takes one flat row and `tree=Plan(...)`, and nothing else."""
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation(NAME)
    token = _scratch.set(_Scratch())
    try:
        yield
    finally:
        _scratch.reset(token)
        decoder.set_attn_implementation(before)
