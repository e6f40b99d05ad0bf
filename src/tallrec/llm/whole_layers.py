"""Whole decoder layers of Llama's formula, as three nodes in the graph of gradients.

What is before attention, that, and what is behind it, instead of some thirty nodes; what lies
between two products is one pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from tallrec.llm.fused import kernels_of
from tallrec.llm.lean import attend, is_llamas, is_norm, is_silu_gated
from tallrec.llm.lora import LOW, Adapter, adapters_of, drawn_seed, is_plain

if TYPE_CHECKING:
    from tallrec.llm.kernels.projected import Stacked

_TILE = 64  # columns that an adapter's products are computed by
_Adapters: TypeAlias = Sequence[tuple[int, Adapter]]  # and of which projection each is


@dataclass(frozen=True)
class WholeLayer(ABC):
    """A decoder layer; how its products are computed say classes below this one.

    Attributes:
        own: The layer.
        widths: Of queries, keys and values.
        bias_o: What is added to them, side by side, in the dtype of the layer.
    """

    own: Any
    widths: list[int]
    bias_o: Tensor

    @staticmethod
    def parts_of(own: Any) -> tuple[Any, list[int], Tensor]:
        """The attributes above, of a layer that `is_whole`."""
        bases = [linear_of(projection) for projection in projections_of(own)]
        biases: list[Tensor] = [
            base.weight.new_zeros(base.out_features) if base.bias is None else base.bias
            for base in bases
        ]
        return own, [base.out_features for base in bases], torch.cat(biases).detach()

    @abstractmethod
    def project(self, x: Tensor) -> tuple[Sequence[Tensor], Tensor | None, Tensor]:
        """The norm of x times the weights of queries, keys and values.

        Returns:
            The products and their factors, as `kernels.projected` takes them, and 1 / rms(x).
        """

    @abstractmethod
    def project_back(self, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The gradient of the norm of x, of what `kernels.projected_backward` gives.

        Returns:
            The gradient, and what its rows are to be scaled by, if at all.
        """

    @abstractmethod
    def finish(
        self, x: Tensor, attended: Tensor, *, keeps: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What follows attention: its last product, residual, norm, gated MLP, residual.

        Returns:
            The layer's result, and what the gradients need, if they will be wanted.
        """

    @abstractmethod
    def finish_back(self, grad: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The gradients of x and of what attention gave."""

    @property
    @abstractmethod
    def rounds(self) -> bool:
        """Whether products are of eight bits."""

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """The layer's forward pass."""
        parts = [adapters_of(projection) for projection in projections_of(self.own)]
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
        layer: WholeLayer,
        rotation: tuple[Tensor, Tensor],
        adapters: _Adapters,
        *_matrices: Tensor,
    ) -> tuple[Tensor, ...]:
        kernels, x = kernels_of(x), x.contiguous()
        products, factors, scale = layer.project(x)
        normed, table = (x, layer.own.input_layernorm.weight, scale), _table(layer, adapters)
        turn = [part.to(x.dtype).expand(*x.shape[:-1], -1).contiguous() for part in rotation]
        more = layer.bias_o, normed, _stacked(layer, adapters, table), turn, layer.widths
        *qkv, low = kernels.projected(products, factors, *more)
        ctx.layer, ctx.adapters = layer, adapters
        ctx.save_for_backward(*normed, *turn, table, low)
        return *(part.unflatten(-1, (-1, layer.own.self_attn.head_dim)) for part in qkv), x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *saved, table, low = ctx.saved_tensors
        layer, adapters, normed, turn = ctx.layer, ctx.adapters, saved[:3], saved[3:]
        kernels, (*heads, beside) = kernels_of(low), (grad.contiguous() for grad in grads)
        heads = [grad.flatten(2) for grad in heads]
        stacked = _stacked(layer, adapters, table)
        given, more, da_ri, db_ro = kernels.projected_backward(
            heads, normed, stacked, turn, low, rounds=layer.rounds
        )
        dx, slopes = None, _unstacked(adapters, table, da_ri, db_ro)
        if ctx.needs_input_grad[0]:
            y, factors = layer.project_back(given)
            dx, _, _ = kernels.norm_backward_added(y, factors, more, *normed, beside)
        return dx, None, None, None, *slopes


class _Behind(torch.autograd.Function):
    """`WholeLayer.finish`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, attended: Tensor, layer: WholeLayer) -> Tensor:
        y, saved = layer.finish(x, attended, keeps=any(ctx.needs_input_grad))
        ctx.layer = layer
        ctx.save_for_backward(*saved)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        return *ctx.layer.finish_back(grads[0].contiguous(), ctx.saved_tensors), None


def _table(layer: WholeLayer, adapters: _Adapters) -> Tensor:
    """Where each adapter's outputs and ranks are, and what its dropout draws; see `Stacked`."""
    kernels, table, rank = kernels_of(layer.bias_o), list[list[int]](), 0
    ends = list(accumulate(layer.widths))
    for number, one in adapters:
        first, rank = rank, rank + len(one.a) + -len(one.a) % 4
        outputs = [ends[number] - layer.widths[number], ends[number]]
        seed = drawn_seed() if one.p else 0
        table.append([*kernels.drawn(seed, one.p), *outputs, first, rank])
    return torch.tensor(table, dtype=torch.int64).view(-1, kernels.COLUMNS)


def _stacked(layer: WholeLayer, adapters: _Adapters, table: Tensor) -> Stacked:
    """Adapters as compiled loops take them."""
    rank = int(table[-1, -1]) if len(table) else 0
    a_ri = torch.zeros(rank, len(layer.own.input_layernorm.weight))
    b_ro = torch.zeros(rank, max(layer.widths))
    for (_, one), first in zip(adapters, table[:, -2].tolist(), strict=True):
        ranks = slice(first, first + len(one.a))
        a_ri[ranks], b_ro[ranks, : len(one.b)] = one.a, one.b.T * one.factor
    return cast("Stacked", kernels_of(layer.bias_o).Stacked(a_ri, b_ro, table))


def _unstacked(
    adapters: _Adapters, table: Tensor, da_ri: Tensor, db_ro: Tensor
) -> Iterator[Tensor]:
    """Gradients of each adapter's matrices."""
    for (_, one), first in zip(adapters, table[:, -2].tolist(), strict=True):
        ranks = slice(first, first + len(one.a))
        yield da_ri[ranks].to(one.a.dtype)
        yield (db_ro[ranks, : len(one.b)].T * one.factor).to(one.b.dtype)


def projections_of(layer: Any) -> list[nn.Module]:
    """Of a layer: those of queries, keys and values."""
    attention = layer.self_attn
    return [attention.q_proj, attention.k_proj, attention.v_proj]


def linear_of(projection: nn.Module) -> nn.Linear:
    """A linear layer, of which an adapter may be beside."""
    return cast("nn.Linear", getattr(projection, "base_layer", projection))


def is_whole(
    layer: nn.Module, is_linear: Callable[[nn.Module], bool], *, beside: bool | None
) -> bool:
    """Whether a decoder layer can be a `WholeLayer`.

    Args:
        layer: The layer.
        is_linear: Tells layers whose products can be computed there.
        beside: Whether adapters are beside the weights; False: in them; None: either.
    """
    if not is_llamas(layer):
        return False
    parts = cast("Any", layer)
    o, mlp = parts.self_attn.o_proj, parts.mlp
    norms = parts.input_layernorm, parts.post_attention_layernorm
    bases = [linear_of(projection) for projection in projections_of(layer)]
    behind = [o, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return (
        all(_fits(projection, beside=beside) for projection in projections_of(layer))
        and all(is_linear(part) for part in (*bases, *behind))
        and all(base.in_features % _TILE == base.out_features % _TILE == 0 for base in bases)
        and all(part.bias is None for part in behind)
        and not (torch.is_grad_enabled() and any(_is_tuned(base.bias) for base in bases))
        and all(is_norm(norm) and norm.weight.dtype == o.weight.dtype for norm in norms)
        and is_silu_gated(mlp)
    )


def _is_tuned(bias: Tensor | None) -> bool:
    return bias is not None and bias.requires_grad


def _fits(projection: nn.Module, *, beside: bool | None) -> bool:
    """Whether its adapters, if it has any, can be computed with it."""
    if type(projection) is not Linear:
        return type(projection) is nn.Linear
    if projection.merged:
        return not beside
    is_low = all(len(one.a) <= LOW for one in adapters_of(projection))
    return beside is not False and is_plain(projection) and is_low
