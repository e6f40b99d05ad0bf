"""Attention over a `Tree`, through transformers' attention interface.

The scores of a block are batched matrix products, which in bfloat16 on a CPU take less than half
the time of torch's fused attention. Gradients compute them again; nothing of their size is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor
from transformers import AttentionInterface

from tallrec.llm.fused import kernels_for
from tallrec.llm.tree import Block, Tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Shape letters: n flat tokens, c kept and flat tokens, h heads, g heads of keys, d width of a head;
# of a block: m runs, q and k their queries and keys, s shared keys, b = g m, r = (h / g) q.

NAME = "tallrec-tree"
_UNKNOWN = ("softcap", "s_aux", "position_bias")  # what some families do to scores
Memory = dict[int, tuple[Tensor, ...]]  # keys and values, [c, g, d], by layer
_Pair: TypeAlias = tuple[Tensor, Tensor]  # of own keys, [b, r, k], and shared ones, [g, m r, s]


class _Rows:
    """A block's tokens as rows of queries ([n h, d]) and of keys and values ([c g, d])."""

    def __init__(self, block: Block, h: int, g: int, like: Tensor) -> None:
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

    def queries(self, x_nhd: Tensor) -> Tensor:
        """x_brd."""
        g, m, per_group, n_q = self.shape
        return _take(x_nhd, self.q).view(g * m, per_group * n_q, -1)

    def keys(self, x_cgd: Tensor) -> tuple[Tensor, Tensor]:
        """x_bkd of the runs' own keys and x_gsd of the shared ones."""
        g, m = self.shape[:2]
        return (
            _take(x_cgd, self.k).view(g * m, -1, x_cgd.shape[-1]),
            _take(x_cgd, self.s).view(g, len(self.s) // g, x_cgd.shape[-1]),
        )

    def products(self, x_brd: Tensor, own_bkd: Tensor, shared_gsd: Tensor) -> tuple[Tensor, Tensor]:
        """Of each query with its own keys, [b, r, k], and with the shared ones, [g, m r, s]."""
        x_grd = x_brd.view(len(shared_gsd), -1, x_brd.shape[-1])
        return x_brd @ own_bkd.transpose(1, 2), x_grd @ shared_gsd.transpose(1, 2)

    def weights(self, q_brd: Tensor, k_bkd: Tensor, s_gsd: Tensor, scaling: float) -> _Pair:
        """Softmax of the scores, over own and shared keys together."""
        own, shared = self.products(q_brd, k_bkd, s_gsd)
        kernels = kernels_for(own)
        softmax_ = kernels.softmax_ if kernels else _softmax_
        softmax_(own, shared, self.seen, scaling)
        return own, shared

    def sums(self, weights: _Pair, x_bkd: Tensor, x_gsd: Tensor) -> Tensor:
        """Of what belongs to the keys, weighted: x_brd."""
        own, shared = weights
        sum_brd = own @ x_bkd
        if len(self.s):
            sum_brd += (shared @ x_gsd).view_as(sum_brd)
        return sum_brd


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
    drift_r1 = sum((p.float() * d.float()).sum(1, keepdim=True) for p, d in pairs).to(own.dtype)
    for p, d in pairs:
        d.sub_(drift_r1).mul_(p).mul_(scaling)


def _take(x_nhd: Tensor, rows: Tensor) -> Tensor:
    return x_nhd.reshape(-1, x_nhd.shape[-1]).index_select(0, rows)


class Plan:
    """A tree made ready for the heads of a model.

    Args:
        tree: What attends to what.
        memory: By layer, keys and values of the tree's kept tokens; those of `keep` take their
            place. Without it nothing is kept.
        keep: Which tokens to keep, counted as in `Tree.paths`.
    """

    def __init__(
        self, tree: Tree, memory: Memory | None = None, keep: Tensor | None = None
    ) -> None:
        self.tree, self.memory, self.keep = tree, memory, keep
        self._rows: dict[tuple[int, int], tuple[list[_Rows], Tensor]] = {}

    def rows(self, q_nhd: Tensor, k_cgd: Tensor) -> tuple[list[_Rows], Tensor]:
        """The blocks' rows, and for each row of [n h, d] which of all their queries it is."""
        h, g = key = (q_nhd.shape[1], k_cgd.shape[1])
        if key not in self._rows:
            blocks = [_Rows(block, h, g, q_nhd) for block in self.tree.blocks]
            back = torch.empty(len(self.tree.ids_n) * h, dtype=torch.long)
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
        parts = []
        for rows in blocks:
            weights = rows.weights(rows.queries(q_nhd), *rows.keys(k_cgd), scaling)
            parts.append(rows.sums(weights, *rows.keys(v_cgd)).flatten(0, 1))
        ctx.save_for_backward(q_nhd, k_cgd, v_cgd)
        ctx.plan, ctx.scaling = plan, scaling
        return torch.cat(parts).index_select(0, back).view_as(q_nhd)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_nhd, k_cgd, v_cgd = ctx.saved_tensors
        blocks, back = ctx.plan.rows(q_nhd, k_cgd)
        dk_cgd, dv_cgd = (
            torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k_cgd, v_cgd)
        )
        dq_parts = []
        for rows in blocks:
            q_brd, do_brd, keys = rows.queries(q_nhd), rows.queries(grads[0]), rows.keys(k_cgd)
            if rows.real is not None:
                do_brd *= rows.real.view(*do_brd.shape[:2], 1)
            weights = rows.weights(q_brd, *keys, ctx.scaling)
            slopes = rows.products(do_brd, *rows.keys(v_cgd))
            _add(dv_cgd, rows, weights, do_brd)
            kernels = kernels_for(do_brd)
            softmax_backward_ = kernels.softmax_backward_ if kernels else _softmax_backward_
            softmax_backward_(*weights, *slopes, ctx.scaling)
            _add(dk_cgd, rows, slopes, q_brd)
            dq_parts.append(rows.sums(slopes, *keys).flatten(0, 1))
        dq_nhd = torch.cat(dq_parts).index_select(0, back).view_as(q_nhd)
        return dq_nhd, dk_cgd.to(k_cgd.dtype), dv_cgd.to(v_cgd.dtype), None, None


def _add(sum_cgd: Tensor, rows: _Rows, weights: _Pair, x_brd: Tensor) -> None:
    """Adds to each key what belongs to its queries, weighted; many runs look at the same keys."""
    own, shared = weights
    sum_cd = sum_cgd.view(-1, sum_cgd.shape[-1])
    sum_cd.index_add_(0, rows.k, (own.transpose(1, 2) @ x_brd).flatten(0, 1).float())
    if len(rows.s):
        x_grd = x_brd.view(len(shared), -1, x_brd.shape[-1])
        sum_cd.index_add_(0, rows.s, (shared.transpose(1, 2) @ x_grd).flatten(0, 1).float())


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
    unknown = [
        name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None
    ]
    if unknown or dropout:
        raise NotImplementedError(f"its attention has {', '.join(unknown) or 'dropout'}")
    q_nhd, k_ngd, v_ngd = (x[0].transpose(0, 1) for x in (query, key, value))
    if tree.memory is not None:
        k_ngd, v_ngd = tree.remember(cast("int", module.layer_idx), k_ngd, v_ngd)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out_nhd: Tensor = _TreeAttention.apply(q_nhd, k_ngd, v_ngd, tree, scaling)  # type: ignore[no-untyped-call]
    return out_nhd[None], None


AttentionInterface.register(NAME, tree_attention)


@contextmanager
def attending_by_tree(decoder: PreTrainedModel) -> Iterator[None]:
    """Inside, the decoder takes one flat row and `tree=Plan(...)`, and nothing else."""
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation(NAME)
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)
