"""Whole decoder layers whose products are of eight bits.

What lies between two products goes from one rounding to the next in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from tallrec.llm.fused import kernels_of
from tallrec.llm.int8_products import BY_COLUMNS, BY_ROWS, Kept, Weight, gated_pair, weight_of
from tallrec.llm.whole_layers import WholeLayer, linear_of, projections_of


class _Weights(NamedTuple):
    """Rounded weights; those of queries, keys and values together, as those of gate and up."""

    qkv: Weight
    o: Weight
    gate_up: Weight
    down: Weight

    def behind(self) -> list[Any]:
        """Those behind attention, where one loop goes through them all; else none."""
        if self.o.loops is None:
            return []
        kernels, behind = kernels_of(self.o.steps_o), (self.o, self.gate_up, self.down)
        return [kernels.Packed(weight.packed, weight.steps_o.view(1, -1)) for weight in behind]


@dataclass(frozen=True)
class Int8Layer(WholeLayer):
    """A decoder layer, and its rounded weights for either direction.

    Attributes:
        by_rows: Forward.
        by_columns: Backward; None where nothing has gradients.
    """

    by_rows: _Weights
    by_columns: _Weights | None
    rounds = True

    @classmethod
    def made(cls, own: Any, *, tuned: bool) -> Int8Layer:
        """Rounds weights that are not yet.

        Args:
            own: A layer that `is_whole`.
            tuned: Whether gradients are wanted.
        """
        by_columns = _weights(own, BY_COLUMNS) if tuned else None
        return cls(*cls.parts_of(own), _weights(own, BY_ROWS), by_columns)

    def project(self, x: Tensor) -> tuple[Sequence[Tensor], Tensor | None, Tensor]:
        """See `WholeLayer`."""
        norm = self.own.input_layernorm
        whole, steps, scale = kernels_of(x).norm_rounded(x, norm.weight, norm.variance_epsilon)
        return [self.by_rows.qkv.product(whole, x.dtype)], steps, scale

    def project_back(self, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """See `WholeLayer`."""
        whole, steps = grads
        return cast("_Weights", self.by_columns).qkv.product(whole, self.bias_o.dtype), steps

    def finish(
        self, x: Tensor, attended: Tensor, *, keeps: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `WholeLayer`."""
        kernels, weights, norm = kernels_of(x), self.by_rows, self.own.post_attention_layernorm
        if packed := weights.behind():
            of_norm = norm.weight, norm.variance_epsilon
            y, x, *more = kernels.finished(x, attended, of_norm, packed, keeps=keeps)
            return y, (x, norm.weight, *more) if keeps else ()
        whole, steps = kernels.rounded(attended)
        y = weights.o.product(whole, x.dtype)
        of_norm = norm.weight, norm.variance_epsilon
        x, whole, steps, scale = kernels.added_norm_rounded(y, steps, x, *of_norm)
        both = weights.gate_up.product(whole, x.dtype)
        saved = (x, norm.weight, scale, both, steps) if keeps else ()
        whole, steps = kernels.gated_rounded(both, steps)
        del y, both  # what is free now is where the next tensors fit
        return kernels.added(weights.down.product(whole, x.dtype), steps, x), saved

    def finish_back(self, grad: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """See `WholeLayer`."""
        *normed, both, of_both = saved
        kernels, weights = kernels_of(both), cast("_Weights", self.by_columns)
        if packed := weights.behind():
            return cast("tuple[Tensor, Tensor]", kernels.finished_backward(grad, saved, packed))
        whole, steps = kernels.rounded(grad)
        inner = weights.down.product(whole, grad.dtype)
        whole, steps = kernels.gated_backward_rounded(inner, steps, both, of_both)
        y = weights.gate_up.product(whole, grad.dtype)
        dx, *rounded = kernels.norm_backward_added(y, steps, None, *normed, grad, rounds=True)
        return dx, weights.o.times(rounded, grad.dtype)


def _weights(layer: Any, kept: Kept) -> _Weights:
    attention, bases = layer.self_attn, [linear_of(p) for p in projections_of(layer)]
    if any(getattr(p, "merged", False) for p in projections_of(layer)):
        qkv = Weight.made(torch.cat([base.weight.data for base in bases]), ())
    else:
        qkv = weight_of(attention, kept, *bases)
    return _Weights(qkv, weight_of(attention.o_proj, kept), *gated_pair(layer.mlp, kept))
