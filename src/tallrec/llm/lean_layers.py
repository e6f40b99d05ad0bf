"""Decoders whose layers are lean (`tallrec.llm.lean`), and whole where they are tuned.

Where nothing has gradients, batches are so large that whole layers take as long as their parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tallrec.llm.fused import kernels_of
from tallrec.llm.lean import is_llamas, last_layer, layers_of, leaner_of
from tallrec.llm.replaced import replaced
from tallrec.llm.sharding import is_sharded
from tallrec.llm.whole_layers import WholeLayer, is_whole, linear_of, projections_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LeanLayer(WholeLayer):
    """A decoder layer whose products are of its own weights, as they are."""

    rounds = False

    def project(self, x: Tensor) -> tuple[Sequence[Tensor], Tensor | None, Tensor]:
        """See `WholeLayer`."""
        norm = self.own.input_layernorm
        normed, scale = kernels_of(x).norm(x, norm.weight, norm.variance_epsilon)
        return [linear(normed, weight) for weight in self._projections()], None, scale

    def project_back(self, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """See `WholeLayer`."""
        return _sum_of_products(grads, self._projections()), None

    def finish(
        self, x: Tensor, attended: Tensor, *, keeps: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `WholeLayer`."""
        kernels, mlp, norm = kernels_of(x), self.own.mlp, self.own.post_attention_layernorm
        y = linear(attended, self.own.self_attn.o_proj.weight)
        x, normed, scale = kernels.added_norm(y, x, norm.weight, norm.variance_epsilon)
        gate, up = (linear(normed, part.weight) for part in (mlp.gate_proj, mlp.up_proj))
        saved = (x, norm.weight, scale, gate, up) if keeps else ()
        inner = kernels.gated(gate, up)
        del y, normed, gate, up  # what is free now is where the next tensors fit
        return linear(inner, mlp.down_proj.weight).add_(x), saved

    def finish_back(self, grad: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """See `WholeLayer`."""
        *normed, gate, up = saved
        kernels, mlp = kernels_of(grad), self.own.mlp
        slopes = kernels.gated_backward(grad @ mlp.down_proj.weight, gate, up)
        y = _sum_of_products(slopes, [mlp.gate_proj.weight, mlp.up_proj.weight])
        dx, _, _ = kernels.norm_backward_added(y, None, None, *normed, grad)
        return dx, dx @ self.own.self_attn.o_proj.weight

    def _projections(self) -> list[Tensor]:
        return [linear_of(projection).weight for projection in projections_of(self.own)]


def _sum_of_products(grads: Sequence[Tensor], weights_oi: Sequence[Tensor]) -> Tensor:
    """The gradient of what several layers read."""
    (first, *others), (weight_oi, *other_weights) = grads, weights_oi
    y = first @ weight_oi
    for grad, other_oi in zip(others, other_weights, strict=True):
        y.flatten(0, -2).addmm_(grad.flatten(0, -2), other_oi)
    return y


def _is_linear(part: nn.Module) -> bool:
    """Whether a layer is linear and its weights are frozen."""
    plain = type(part) is nn.Linear and "forward" not in vars(part)
    return plain and not cast("nn.Linear", part).weight.requires_grad


@contextmanager
def lean_layers(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Inside, layers, norms, gated MLPs and attention of the usual formulas compute quicker.

    Args:
        model: A model on its device. Norms that are tuned and sharded models are left alone.
    """
    lean: dict[nn.Module, Callable[..., Any]] = {
        module: partial(leaner, module)
        for module in (() if is_sharded(model) else model.modules())
        # Validation scores inside tuning, where they are lean already.
        if "forward" not in vars(module) and (leaner := leaner_of(module))
    }
    layers = layers_of(model)
    for layer in layers:
        if getattr(layer, "self_attn", None) not in lean:
            continue
        if layer is layers[-1]:
            if is_llamas(layer):
                lean[layer] = partial(last_layer, layer)
        elif torch.is_grad_enabled() and is_whole(layer, _is_linear, beside=None):
            lean[layer] = LeanLayer(*LeanLayer.parts_of(layer))
    with replaced(lean):
        yield
