"""Attention of a `Tree`'s block as batched products and softmax, in memory that is used again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

import torch
from torch import Tensor

from tallrec.llm.fused import kernels_for
from tallrec.llm.tree import Block

# Shape letters: n flat tokens, c kept and flat tokens, h heads, g heads of keys, d width of a head;
# of a block: m runs, q and k their queries and keys, s shared keys, b = g m, r = (h / g) q.

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


@contextmanager
def reused_memory() -> Iterator[None]:
    """Inside, blocks of one dtype and device may be computed; their memory is freed at the end."""
    token = _scratch.set(_Scratch())
    try:
        yield
    finally:
        _scratch.reset(token)


class BlockRows:
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

    def weights(self, q_brd: Tensor, keys: _Pair, scaling: float) -> tuple[_Pair, Tensor | None]:
        """Softmax of the scores, over own and shared keys together; and what `slopes` needs."""
        own, shared = self.products("weights", q_brd, keys)
        kernels = kernels_for(own)
        softmax_ = kernels.softmax_ if kernels else _softmax_
        return (own, shared), softmax_(own, shared, self.seen, scaling)

    def slopes(
        self,
        q_brd: Tensor,
        keys: _Pair,
        do_brd: Tensor,
        values: _Pair,
        bases: Tensor | None,
        scaling: float,
    ) -> tuple[_Pair, _Pair]:
        """The weights again, and the gradients of the scores."""
        weights = self.products("weights", q_brd, keys)
        slopes = self.products("slopes", do_brd, values)
        if kernels := kernels_for(do_brd):
            kernels.softmax_backward_(*weights, *slopes, self.seen, bases, scaling)
        else:
            _softmax_(*weights, self.seen, scaling)
            _softmax_backward_(*weights, *slopes, scaling)
        return weights, slopes

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
    """Softmax of scaling times scores, in place, as `kernels.softmax_` by torch."""
    own_rk, shared_rs = own.view(len(seen), -1), shared.view(len(seen), -1)
    unseen = torch.arange(own_rk.shape[1], device=own.device) >= seen
    scores = torch.cat([own_rk.masked_fill(unseen, -torch.inf), shared_rs], dim=1)
    weights = scores.mul_(scaling).softmax(dim=1)
    own_rk.copy_(weights[:, : own_rk.shape[1]])
    shared_rs.copy_(weights[:, own_rk.shape[1] :])


def _softmax_backward_(
    own: Tensor, shared: Tensor, d_own: Tensor, d_shared: Tensor, scaling: float
) -> None:
    """Turns gradients of `_softmax_`'s results into those of the scores, in place."""
    rows = own.shape[:-1].numel()
    pairs = [(p.view(rows, -1), d.view(rows, -1)) for p, d in ((own, d_own), (shared, d_shared))]
    drift_pr1 = torch.stack([(p.float() * d.float()).sum(1, keepdim=True) for p, d in pairs])
    for p, d in pairs:
        d.sub_(drift_pr1.sum(0)).mul_(p).mul_(scaling)
