"""A tree's attention on a GPU: FlexAttention, with a mask made from the tree, no padding.

In depth-first order the tokens that see a token are those right behind it. So one number a token is
the whole mask, and which tiles of it are empty or full follows from the numbers of each tile.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tallrec.llm.tree import Tree, build_tree

# Shape letters: n flat tokens, c kept and flat tokens, h heads, g heads of keys, d width of a head,
# i and j tiles of queries and of keys.

_log = logging.getLogger(__name__)
_TILE = 128  # queries and keys of a tile, FlexAttention's own choice
_PROBE = [[0] * 150 + [i] * 70 for i in range(3)]


def ends(tree: Tree) -> Tensor:
    """For each kept and flat token, the first behind it that does not see it, ends_c."""
    ends_c = np.arange(tree.n_kept + len(tree.ids_n)) + 1
    for path in tree.paths:
        ends_c[path] = np.maximum(ends_c[path], path[-1] + 1)
    return torch.from_numpy(ends_c)


def tree_mask(tree: Tree, device: torch.device) -> BlockMask:
    """What each flat token sees, for queries [n] and keys [c]; no mask of n x c is made."""
    ends_c = ends(tree)
    some_ij, every_ij = _tiles(ends_c, tree.n_kept)
    ends_c, n_kept = ends_c.to(device), torch.tensor(tree.n_kept, device=device)

    def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q + n_kept) & (q + n_kept < ends_c[k])

    n_partial, partial = _listed(some_ij & ~every_ij, device)
    n_full, full = _listed(every_ij, device)
    return BlockMask.from_kv_blocks(
        n_partial,
        partial,
        n_full,
        full,
        BLOCK_SIZE=_TILE,
        mask_mod=sees,
        seq_lengths=(len(tree.ids_n), len(ends_c)),
    )


def _tiles(ends_c: Tensor, n_kept: int) -> tuple[Tensor, Tensor]:
    """Whether a tile's queries see some of its keys (or might), and whether they see every one."""
    n, c = len(ends_c) - n_kept, len(ends_c)
    first_i1 = n_kept + torch.arange(0, n, _TILE)[:, None]
    first_j = torch.arange(0, c, _TILE)
    last_i1, last_j = first_i1 + _TILE - 1, first_j + _TILE - 1
    ends_jk = pad(ends_c, (0, -c % _TILE)).view(-1, _TILE)  # nothing sees what is not there
    some_ij = (first_j <= last_i1) & (ends_jk.amax(1) > first_i1)
    every_ij = (last_j <= first_i1) & (ends_jk.amin(1) > last_i1)
    return some_ij, every_ij


def _listed(chosen_ij: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each tile of queries how many are chosen, and all of them, the chosen ones first."""
    order_ij = chosen_ij.int().argsort(dim=1, descending=True, stable=True)
    lists = chosen_ij.sum(1)[None, None], order_ij[None, None]
    return lists[0].int().to(device), lists[1].int().to(device)


def attend(
    module: torch.nn.Module,
    q_nhd: Tensor,
    k_cgd: Tensor,
    v_cgd: Tensor,
    mask: BlockMask,
    scaling: float,
) -> Tensor:
    """softmax(Q K') V of every token over its ancestors and itself, [n, h, d].

    Args:
        module: The layer; transformers compiles for training and for evaluation.
        q_nhd: Queries of the flat tokens.
        k_cgd: Keys of kept and flat tokens.
        v_cgd: Their values.
        mask: That of `tree_mask`.
        scaling: What scores are multiplied by.
    """
    flex: Any = ALL_ATTENTION_FUNCTIONS["flex_attention"]
    heads = (x.transpose(0, 1)[None] for x in (q_nhd, k_cgd, v_cgd))
    out: Tensor = flex(module, *heads, mask, scaling=scaling)[0]
    return out[0]


@cache
def works(device: torch.device, dtype: torch.dtype, h: int, g: int, d: int) -> bool:
    """Whether FlexAttention can take such heads on a device; where it should, the log says why not.

    Tried once a process: not every system has the compiler, not every GPU the memory on its chip.
    """
    if device.type == "cpu":
        return False  # it has no gradients there
    if reason := obstacle(device, dtype, h, g, d):
        _log.warning("FlexAttention %s on %s; attention is slower without it", reason, device)
    return not reason


def obstacle(device: torch.device, dtype: torch.dtype, h: int, g: int, d: int) -> str:
    """What FlexAttention does wrong, forward or backward, on a small tree; empty if nothing."""
    tree = build_tree(_PROBE)
    n = len(tree.ids_n)
    generator = torch.Generator(device).manual_seed(0)
    q_nhd, k_ngd, v_ngd, do_nhd = (
        torch.randn(n, heads, d, device=device, dtype=dtype, generator=generator)
        for heads in (h, g, g, h)
    )
    inputs = [x.requires_grad_() for x in (q_nhd, k_ngd, v_ngd)]
    module = torch.nn.Identity()
    with torch.enable_grad():
        try:
            ours = attend(module, q_nhd, k_ngd, v_ngd, tree_mask(tree, device), d**-0.5)
            found = [ours, *torch.autograd.grad(ours, inputs, do_nhd)]
        except (RuntimeError, ValueError) as error:
            return f"fails ({(str(error).strip() or type(error).__name__).splitlines()[0]})"
        at = torch.arange(n, device=device)
        seen_nn = (at <= at[:, None]) & (at[:, None] < ends(tree).to(device))
        q, k, v = (x.transpose(0, 1)[None] for x in inputs)
        plain = scaled_dot_product_attention(q, k, v, seen_nn, enable_gqa=True)[0]
        plain = plain.transpose(0, 1)
        wanted = [plain, *torch.autograd.grad(plain, inputs, do_nhd)]
    allowed = max(1e-4, 4 * torch.finfo(dtype).eps)
    gaps = [
        (one - other).float().norm() / other.float().norm()
        for one, other in zip(found, wanted, strict=True)
    ]
    return "" if all(gap <= allowed for gap in gaps) else "computes something else"
