"""Whole decoder layers that are only read, whose products are partly by sums.

How that is quicker says `tallrec.llm.kernels.mixed_products`. Steps of what is by sums are twice as
large as the others', unless its numbers are small. Where a model's activations are large its
weights are small, so that weights tell which two thirds of the channels are by sums: those of the
larger weights. Before queries, keys and values they are doubled, and their weights halved. The
hidden states of all layers are held in that order, so that nothing is put in order between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tallrec.llm.attention import Plan
from tallrec.llm.fused import kernels_for, kernels_of
from tallrec.llm.int8_products import Kept, Weight
from tallrec.llm.lean import attend
from tallrec.llm.whole_layers import WholeLayer, linear_of, projections_of

_Versions: TypeAlias = list[tuple[int, int]]
_IN_ORDER: Kept = WeakKeyDictionary()
_orders: WeakKeyDictionary[nn.Module, tuple[_Versions, Tensor]] = WeakKeyDictionary()


def multiplies_by_sums(layers: Sequence[Any]) -> bool:
    """Whether products of layers that are whole can be by sums, and are quicker so."""
    kernels = kernels_for(layers[0].self_attn.o_proj.weight) if layers else None
    if kernels is None or not kernels.mixed_products.IN_USE:
        return False
    attention = layers[0].self_attn
    if not kernels.attends(attention.o_proj.weight.new_empty(0, attention.head_dim)):
        return False
    inputs = {
        part
        for layer in layers
        for part in (layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.down_proj)
    }
    return all(part.in_features % kernels.mixed_rows.MULTIPLE == 0 for part in inputs)


def layers_by_sums(layers: Sequence[Any]) -> dict[nn.Module, LayerBySums]:
    """Forward passes of layers that are whole and follow each other, the first one first."""
    order, handed = _order_of(layers), _Handed()
    enters, leaves = {layers[0]: order}, {layers[-1]: order.argsort()}
    made: dict[nn.Module, LayerBySums] = {}
    behind = None
    for layer in reversed(layers):
        ends = enters.get(layer), leaves.get(layer)
        behind = made[layer] = LayerBySums.made(layer, order, *ends, behind, handed)
    return made


@dataclass
class _Handed:
    """What a layer hands to the one behind it, if that reads what this gave.

    Attributes:
        of: What it gave.
        heads: The other's queries, keys and values of that.
        turn: What queries and keys are rotated by, in the dtype of the layers.
    """

    of: Tensor | None = None
    heads: Sequence[Tensor] = ()
    turn: Sequence[Tensor] = ()

    def take(self, x: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Heads and turn of x, if they are, and forgets them."""
        found = (self.heads, self.turn) if self.of is x else ((), ())
        self.of, self.heads, self.turn = None, (), ()
        return found


@dataclass(frozen=True)
class LayerBySums:
    """A decoder layer whose channels are in order.

    Attributes:
        own: The layer.
        widths: Of queries, keys and values.
        bias_o: What is added to them, side by side, in the dtype of the layer; empty if nothing is.
        norms: Weight and epsilon of that before attention, doubled where it is by sums, and of
            that behind it.
        packed: Rounded weights: of queries, keys and values together, of what follows attention,
            of gate and up together, and of down.
        enters: What puts the channels of the input in order; None if they are.
        leaves: What puts those of the output back; None if they stay in order.
        behind: The next layer, which is begun where the rows of this one are at hand.
        handed: What the layers share.
    """

    own: Any
    widths: list[int]
    bias_o: Tensor
    norms: list[tuple[Tensor, float]]
    packed: list[Any]
    enters: Tensor | None
    leaves: Tensor | None
    behind: LayerBySums | None
    handed: _Handed

    @classmethod
    def made(cls, own: Any, order: Tensor, *more: Any) -> LayerBySums:
        """Rounds weights that are not yet; more are the last attributes."""
        before, behind = (
            (norm.weight.data[order], norm.variance_epsilon)
            for norm in (own.input_layernorm, own.post_attention_layernorm)
        )
        norms = [(before[0] * _factors(order, before[0].dtype), before[1]), behind]
        own, widths, bias_o = WholeLayer.parts_of(own)
        bias_o = bias_o if bias_o.any() else bias_o[:0]
        return cls(own, widths, bias_o, norms, _packed(own, order), *more)

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """The layer's forward pass."""
        x, tree, kernels = hidden_states.contiguous(), kwargs.get("tree"), kernels_of(hidden_states)
        heads, turn = self.handed.take(hidden_states)
        if not heads:
            x = x if self.enters is None else kernels.in_order(x, self.enters)
            parts = (part.to(x.dtype) for part in position_embeddings)
            turn = [part.expand(*x.shape[:-1], -1).contiguous() for part in parts]
            heads = self._places(x, tree)
            kernels.begun(x, self._begins(x, heads, turn))
        size = self.own.self_attn.head_dim
        q, k, v = (part.view(*part.shape[:-1], -1, size) for part in heads)
        if tree:
            attended = self._attended(tree, q[0], k[0], v[0])
        else:
            more = attention_mask, past_key_values
            attended = attend(self.own.self_attn, q, k, v, *more, **kwargs)[0].flatten(2)
        begins = None
        if self.behind:
            heads = self.behind._places(x, tree)
            begins = self.behind._begins(x, heads, turn)
        how = {"keeps": False, "by_sums": True, "behind": begins}
        y: Tensor
        y, *_ = kernels.finished(x, attended, self.norms[1], self.packed[1:], **how)
        if self.behind:
            self.handed.of, self.handed.heads, self.handed.turn = y, heads, turn
        return y if self.leaves is None else kernels.in_order(y, self.leaves)

    def _places(self, x: Tensor, tree: Plan | None) -> list[Tensor]:
        """For queries, keys and values of x, the last two behind those that the tree keeps."""
        kept = tree.kept(self.own.self_attn.layer_idx) if tree else ()
        places = [x.new_empty(*x.shape[:-1], self.widths[0])]
        for width, held in zip_longest(self.widths[1:], kept):
            n_kept = 0 if held is None else len(held)
            place = x.new_empty(*x.shape[:-2], n_kept + x.shape[-2], width)
            if n_kept:
                place[0, :n_kept] = held.flatten(1)
            places.append(place)
        return places

    def _begins(self, x: Tensor, heads: Sequence[Tensor], turn: Sequence[Tensor]) -> Any:
        """How the layer begins with x."""
        new = [place[..., place.shape[-2] - x.shape[-2] :, :] for place in heads]
        return kernels_of(x).Begins(new, self.norms[0], self.packed[0], self.bias_o, turn)

    def _attended(self, tree: Plan, q_nhd: Tensor, *kv_cgd: Tensor) -> Tensor:
        """Attention by a tree, of keys and values that follow those that are kept."""
        tree.remember(self.own.self_attn.layer_idx, *kv_cgd)
        runs, scaling = tree.runs(q_nhd), self.own.self_attn.scaling
        out_nhd, _ = kernels_of(q_nhd).attend(q_nhd, *kv_cgd, runs, scaling, keeps=False)
        attended: Tensor = out_nhd.flatten(1)[None]
        return attended


def _factors(order: Tensor, dtype: torch.dtype) -> Tensor:
    """2 for channels in order that are by sums, 1 for the others."""
    rows = kernels_of(torch.empty(0)).mixed_rows
    by_sums = torch.arange(len(order)) % rows.GROUP < 2 * rows.PART_OF
    return torch.where(by_sums, 2, 1).to(dtype)


def _order_of(layers: Sequence[Any]) -> Tensor:
    """Which channel is where, for all layers of a model; the same tensor while weights are."""
    gated = [part for layer in layers for part in (layer.mlp.gate_proj, layer.mlp.up_proj)]
    weights = [part.weight for part in gated]
    versions = [(weight.data_ptr(), weight._version) for weight in weights]
    known = _orders.get(layers[0])
    if known and known[0] == versions:
        return known[1]
    size_d = torch.stack([weight.detach().float().square().mean(0) for weight in weights]).sum(0)
    ordered = size_d.argsort(descending=True, stable=True)
    by_sums = _factors(ordered, torch.int64) == 2
    order = torch.empty_like(ordered)
    order[by_sums], order[~by_sums] = ordered.tensor_split([int(by_sums.sum())])
    _orders[layers[0]] = versions, order
    return order


def _packed(layer: Any, order: Tensor) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    kernels = kernels_of(attention.o_proj.weight)
    by_sums = kernels.mixed_products
    bases = [linear_of(projection) for projection in projections_of(layer)]

    def packed(module: nn.Module, *parts: nn.Linear, reads: bool) -> Any:
        weights = [*(part.weight for part in parts), order]
        weight = _IN_ORDER.get(module)
        if weight is None or not weight.is_of(weights):
            whole_oi = torch.cat([part.weight.data for part in parts])
            whole_oi = whole_oi[:, order] if reads else whole_oi[order]
            if module is attention:
                whole_oi /= _factors(order, whole_oi.dtype)
            weight = _IN_ORDER[module] = Weight.made(whole_oi, weights, by_sums)
        return kernels.Packed(weight.packed, weight.steps_o.view(1, -1))

    return [
        packed(attention, *bases, reads=True),
        packed(attention.o_proj, attention.o_proj, reads=False),
        packed(mlp, mlp.gate_proj, mlp.up_proj, reads=True),
        packed(mlp.down_proj, mlp.down_proj, reads=False),
    ]
