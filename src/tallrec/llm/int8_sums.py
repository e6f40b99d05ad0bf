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
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

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
    inputs = {
        part
        for layer in layers
        for part in (layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.down_proj)
    }
    return all(part.in_features % kernels.mixed_rows.MULTIPLE == 0 for part in inputs)


def layers_by_sums(layers: Sequence[Any]) -> dict[nn.Module, LayerBySums]:
    """Forward passes of layers that are whole and follow each other, the first one first."""
    order = _order_of(layers)
    enters, leaves = {layers[0]: order}, {layers[-1]: order.argsort()}
    return {
        layer: LayerBySums.made(layer, order, enters.get(layer), leaves.get(layer))
        for layer in layers
    }


@dataclass(frozen=True)
class LayerBySums:
    """A decoder layer whose channels are in order.

    Attributes:
        own: The layer.
        widths: Of queries, keys and values.
        bias_o: What is added to them, side by side, in the dtype of the layer.
        norms: Weight and epsilon of that before attention, doubled where it is by sums, and of
            that behind it.
        packed: Rounded weights: of queries, keys and values together, of what follows attention,
            of gate and up together, and of down.
        enters: What puts the channels of the input in order; None if they are.
        leaves: What puts those of the output back; None if they stay in order.
    """

    own: Any
    widths: list[int]
    bias_o: Tensor
    norms: list[tuple[Tensor, float]]
    packed: list[Any]
    enters: Tensor | None
    leaves: Tensor | None

    @classmethod
    def made(
        cls, own: Any, order: Tensor, enters: Tensor | None, leaves: Tensor | None
    ) -> LayerBySums:
        """Rounds weights that are not yet."""
        before, behind = (
            (norm.weight.data[order], norm.variance_epsilon)
            for norm in (own.input_layernorm, own.post_attention_layernorm)
        )
        norms = [(before[0] * _factors(order, before[0].dtype), before[1]), behind]
        return cls(*WholeLayer.parts_of(own), norms, _packed(own, order), enters, leaves)

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """The layer's forward pass."""
        x, attention = hidden_states.contiguous(), self.own.self_attn
        x = x if self.enters is None else x.index_select(-1, self.enters)
        kernels, (qkv, *others), (before, behind) = kernels_of(x), self.packed, self.norms
        turn = [
            part.to(x.dtype).expand(*x.shape[:-1], -1).contiguous() for part in position_embeddings
        ]
        heads = kernels.begun(x, before, qkv, self.bias_o, turn, self.widths)
        q, k, v = (part.unflatten(-1, (-1, attention.head_dim)) for part in heads)
        output, _ = attend(attention, q, k, v, attention_mask, past_key_values, **kwargs)
        y: Tensor
        y, *_ = kernels.finished(x, output.flatten(2), behind, others, keeps=False, by_sums=True)
        return y if self.leaves is None else y.index_select(-1, self.leaves)


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
