"""Whole decoder layers of Llama's formula whose products are of eight bits.

What lies between two products goes from one rounding to the next in one pass. Such a layer is three
nodes in the graph of gradients instead of some thirty: what is before attention, that, and what is
behind it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from tallrec.llm.fused import kernels_of
from tallrec.llm.int8_products import BY_COLUMNS, BY_ROWS, Kept, Weight, gated_pair, weight_of
from tallrec.llm.lean import attend, is_llamas, is_norm, is_silu_gated
from tallrec.llm.lora import LOW, Adapter, adapters_of, drawn_seed, is_plain

if TYPE_CHECKING:
    from tallrec.llm.kernels.projected import Stacked

_Adapters: TypeAlias = Sequence[tuple[int, Adapter]]  # and of which projection each is


class _Weights(NamedTuple):
    """Rounded weights; those of queries, keys and values together, as those of gate and up."""

    qkv: Weight
    o: Weight
    gate_up: Weight
    down: Weight


@dataclass(frozen=True)
class Layer:
    """A decoder layer, and its weights for either direction.

    Attributes:
        own: The layer.
        widths: Of queries, keys and values.
        bias_o: What is added to them, side by side.
        by_rows: Forward.
        by_columns: Backward; None where nothing has gradients.
    """

    own: Any
    widths: list[int]
    bias_o: Tensor
    by_rows: _Weights
    by_columns: _Weights | None

    @classmethod
    def made(cls, own: Any, *, tuned: bool) -> Layer:
        """Rounds weights that are not yet.

        Args:
            own: A layer that `is_whole`.
            tuned: As there.
        """
        bases = [_base(projection) for projection in _projections(own)]
        widths = [base.out_features for base in bases]
        biases: list[Tensor] = [
            base.weight.new_zeros(base.out_features) if base.bias is None else base.bias
            for base in bases
        ]
        by_columns = _weights(own, BY_COLUMNS) if tuned else None
        return cls(own, widths, torch.cat(biases).detach(), _weights(own, BY_ROWS), by_columns)

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """The layer's forward pass."""
        parts = [adapters_of(projection) for projection in _projections(self.own)]
        adapters = [(number, one) for number, part in enumerate(parts) for one in part]
        matrices = [matrix for _, one in adapters for matrix in (one.a, one.b)]
        query, key, value, beside = _Before.apply(  # type: ignore[no-untyped-call]
            hidden_states, self, position_embeddings, adapters, *matrices
        )
        heads = self.own.self_attn, query, key, value
        output, _ = attend(*heads, attention_mask, past_key_values, **kwargs)
        y: Tensor = _Behind.apply(beside, output.flatten(2), self)  # type: ignore[no-untyped-call]
        return y


class _Before(torch.autograd.Function):
    """Norm, and queries, keys and values of it; and the layer's input, to be added behind."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layer: Layer,
        rotation: tuple[Tensor, Tensor],
        adapters: _Adapters,
        *_matrices: Tensor,
    ) -> tuple[Tensor, ...]:
        kernels, norm, x = kernels_of(x), layer.own.input_layernorm, x.contiguous()
        whole, steps, scale = kernels.norm_rounded(x, norm.weight, norm.variance_epsilon)
        y = layer.by_rows.qkv.product(whole, x.dtype)
        stacked, normed = _stacked(layer, adapters), (x, norm.weight, scale)
        turn = [part.to(x.dtype).expand(*x.shape[:-1], -1).contiguous() for part in rotation]
        more = layer.bias_o, normed, stacked, turn, layer.widths
        *qkv, low = kernels.projected(y, steps, *more)
        ctx.layer, ctx.adapters = layer, adapters
        ctx.save_for_backward(*normed, *stacked, *turn, low)
        return *(part.unflatten(-1, (-1, layer.own.self_attn.head_dim)) for part in qkv), x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *saved, low = ctx.saved_tensors
        normed, stacked, turn = saved[:3], saved[3:6], saved[6:]
        kernels, (*heads, beside) = kernels_of(low), (grad.contiguous() for grad in grads)
        heads = [grad.flatten(2) for grad in heads]
        (whole, steps), more, da_ri, db_ro = kernels.projected_backward(
            heads, normed, stacked, turn, low
        )
        dx, slopes = None, _unstacked(ctx.adapters, stacked[2], da_ri, db_ro)
        if ctx.needs_input_grad[0]:
            y = ctx.layer.by_columns.qkv.product(whole, beside.dtype)
            dx, _, _ = kernels.norm_backward_added(y, steps, more, *normed, beside)
        return dx, None, None, None, *slopes


class _Behind(torch.autograd.Function):
    """What follows attention: its last product, residual, norm, gated MLP, residual."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, attended: Tensor, layer: Layer) -> Tensor:
        kernels, weights, norm = kernels_of(x), layer.by_rows, layer.own.post_attention_layernorm
        whole, steps = kernels.rounded(attended)
        y = weights.o.product(whole, x.dtype)
        of_norm = norm.weight, norm.variance_epsilon
        x, whole, steps, scale = kernels.added_norm_rounded(y, steps, x, *of_norm)
        both = weights.gate_up.product(whole, x.dtype)
        ctx.by_columns = layer.by_columns
        ctx.save_for_backward(x, norm.weight, scale, both, steps)
        whole, steps = kernels.gated_rounded(both, steps)
        return cast("Tensor", kernels.added(weights.down.product(whole, x.dtype), steps, x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        *normed, both, of_both = ctx.saved_tensors
        kernels, weights, grad = kernels_of(both), ctx.by_columns, grads[0].contiguous()
        whole, steps = kernels.rounded(grad)
        inner = weights.down.product(whole, grad.dtype)
        whole, steps = kernels.gated_backward_rounded(inner, steps, both, of_both)
        y = weights.gate_up.product(whole, grad.dtype)
        dx, *rounded = kernels.norm_backward_added(y, steps, None, *normed, grad, rounds=True)
        return dx, weights.o.times(rounded, grad.dtype), None


def _stacked(layer: Layer, adapters: _Adapters) -> Stacked:
    """Adapters as compiled loops take them, each with what its dropout draws."""
    kernels, table, rank = kernels_of(layer.bias_o), list[list[int]](), 0
    ends = list(accumulate(layer.widths))
    for number, one in adapters:
        first, rank = rank, rank + len(one.a) + -len(one.a) % 4
        outputs = [ends[number] - layer.widths[number], ends[number]]
        seed = drawn_seed() if one.p else 0
        table.append([*kernels.drawn(seed, one.p), *outputs, first, rank])
    a_ri = torch.zeros(rank, len(layer.own.input_layernorm.weight))
    b_ro = torch.zeros(rank, max(layer.widths))
    for (_, one), row in zip(adapters, table, strict=True):
        ranks = slice(row[-2], row[-2] + len(one.a))
        a_ri[ranks], b_ro[ranks, : len(one.b)] = one.a, one.b.T * one.factor
    of_adapters = torch.tensor(table, dtype=torch.int64).view(-1, kernels.COLUMNS)
    return cast("Stacked", kernels.Stacked(a_ri, b_ro, of_adapters))


def _unstacked(
    adapters: _Adapters, table: Tensor, da_ri: Tensor, db_ro: Tensor
) -> Iterator[Tensor]:
    """Gradients of each adapter's matrices."""
    for (_, one), first in zip(adapters, table[:, -2].tolist(), strict=True):
        ranks = slice(first, first + len(one.a))
        yield da_ri[ranks].to(one.a.dtype)
        yield (db_ro[ranks, : len(one.b)].T * one.factor).to(one.b.dtype)


def _projections(layer: Any) -> list[nn.Module]:
    attention = layer.self_attn
    return [attention.q_proj, attention.k_proj, attention.v_proj]


def _base(projection: nn.Module) -> nn.Linear:
    return cast("nn.Linear", getattr(projection, "base_layer", projection))


def _weights(layer: Any, kept: Kept) -> _Weights:
    attention, bases = layer.self_attn, [_base(p) for p in _projections(layer)]
    if any(getattr(p, "merged", False) for p in _projections(layer)):
        qkv = Weight.made(torch.cat([base.weight.data for base in bases]), ())
    else:
        qkv = weight_of(attention, kept, *bases)
    return _Weights(qkv, weight_of(attention.o_proj, kept), *gated_pair(layer.mlp, kept))


def is_whole(layer: nn.Module, linear: Container[nn.Module], *, tuned: bool) -> bool:
    """Whether a decoder layer can be a `Layer`.

    Args:
        layer: The layer.
        linear: Layers whose products can be of eight bits.
        tuned: Whether gradients are wanted, and adapters beside the weights; else adapters are in
            the weights.
    """
    if not is_llamas(layer):
        return False
    parts = cast("Any", layer)
    o, mlp = parts.self_attn.o_proj, parts.mlp
    norms = parts.input_layernorm, parts.post_attention_layernorm
    bases = [_base(projection) for projection in _projections(layer)]
    behind = [o, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return (
        all(_fits(projection, tuned=tuned) for projection in _projections(layer))
        and all(part in linear for part in (*bases, *behind))
        and all(part.bias is None for part in behind)
        and not (tuned and any(getattr(base.bias, "requires_grad", False) for base in bases))
        and all(is_norm(norm) and norm.weight.dtype == o.weight.dtype for norm in norms)
        and is_silu_gated(mlp)
    )


def _fits(projection: nn.Module, *, tuned: bool) -> bool:
    """Whether its adapters, if it has any, can be computed with it."""
    if type(projection) is not Linear:
        return type(projection) is nn.Linear
    if not tuned:
        return projection.merged
    return is_plain(projection) and all(len(one.a) <= LOW for one in adapters_of(projection))
