"""LoRA's forward pass while tuning, with less to compute and to keep for the gradients.

PEFT computes an adapter in float32 on a float32 copy of its input, and keeps that. Here compiled
loops do it in one pass over the layer's input and output, in float32 too; without them, and for
high ranks, the products are in the model's dtype, as in mixed precision. For the gradients, the
input is had again from the norm before it, and what dropout left out from a seed. In float32
without dropout all are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.nn.functional import linear, pad

from tallrec.llm.fused import kernels_for, kernels_of
from tallrec.llm.lean import Normed
from tallrec.llm.replaced import replaced

if TYPE_CHECKING:
    from peft import PeftModel

LOW = 16  # up to this rank, the loops take less time than matrix products


def _keep(ctx: Any, x: Tensor, *others: Tensor) -> None:
    """For the gradients: other tensors, and x or what the norm that gave it keeps anyway."""
    again = Normed.of(x)
    ctx.epsilon = again.epsilon if again else 0.0
    ctx.save_for_backward(*((again.x, again.weight_d) if again else (x, None)), *others)


def _kept(ctx: Any) -> tuple[Tensor, ...]:
    x, weight_d, *others = ctx.saved_tensors
    return x if weight_d is None else Normed(x, weight_d, ctx.epsilon)(), *others


class _Adapted(torch.autograd.Function):
    """y + factor B A x, into y, with elements of x left out with probability p; by loops only."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, factor: float, p: float
    ) -> Tensor:
        x, ctx.seed = x.contiguous(), drawn_seed() if p else 0
        ctx.p, ctx.factor = p, factor
        a_ri, b_ro = _by_fours(a), _by_fours(b.T * factor)
        kernels = kernels_of(x)
        low = kernels.adapted_(y, x, a_ri, b_ro, ctx.seed, p)
        ctx.mark_dirty(y)
        _keep(ctx, x, a, b, low.to(x.dtype))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, low = _kept(ctx)
        kernels, grad = kernels_of(x), grads[0].contiguous()
        weights = _by_fours(a), _by_fours(b.T * ctx.factor)
        dx, da, db = kernels.adapted_backward(grad, x, *weights, low.float(), ctx.seed, ctx.p)
        da, db = da[: len(a)], db[: len(a)].T * ctx.factor
        return grads[0], dx, da.to(a.dtype), db.to(b.dtype), None, None


def _by_fours(weight: Tensor) -> Tensor:
    """In float32, with rows of zeros up to a multiple of four, which is what the loops take."""
    return pad(weight.float(), (0, 0, 0, -len(weight) % 4)).contiguous()


def drawn_seed() -> int:
    """Of dropout, from torch's generator, so that its state says all."""
    return int(torch.randint(1 << 62, ()))


class _DroppedLinear(torch.autograd.Function):
    """The product with elements of x left out with probability p, without scaling the rest."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, p: float) -> Tensor:
        _keep(ctx, x, a)
        ctx.seed, ctx.p = drawn_seed() if p else 0, p
        return linear(_without(x, ctx.seed, p), a)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, a = _kept(ctx)
        dropped = _without(x, ctx.seed, ctx.p).flatten(0, -2)
        dx = _without(grads[0] @ a, ctx.seed, ctx.p) if ctx.needs_input_grad[0] else None
        return dx, grads[0].flatten(0, -2).T @ dropped, None


def _without(x: Tensor, seed: int, p: float) -> Tensor:
    """Zeros in place of the elements of x that a seed draws with probability p."""
    if not p:
        return x
    if kernels := kernels_for(x):
        return cast("Tensor", kernels.without(x, seed, p))
    generator = torch.Generator(x.device).manual_seed(seed)
    left_out = torch.empty(x.shape, dtype=torch.bool, device=x.device)
    return x.masked_fill(left_out.bernoulli_(p, generator=generator), 0)


def is_plain(layer: torch.nn.Module) -> bool:
    """Whether a layer is W x + scale B A x and nothing else (no DoRA, no trained bias)."""
    return (
        type(layer) is Linear  # those of quantized weights are of other classes
        and not (layer.disable_adapters or layer.merged or layer.lora_variant)
        and all(
            name in layer.lora_A and not layer.lora_bias[name] for name in layer.active_adapters
        )
    )


class Adapter(NamedTuple):
    """What is added to a layer's result: factor B A x, x without what dropout leaves out.

    Attributes:
        a: A, [r, i].
        b: B, [o, r].
        factor: Makes up for dropout too.
        p: The probability with which an element of x is left out.
    """

    a: Tensor
    b: Tensor
    factor: float
    p: float


def adapters_of(layer: torch.nn.Module) -> Iterator[Adapter]:
    """Those of a plain layer; none of a layer without, or whose weights have them in them."""
    if type(layer) is not Linear or layer.merged:
        return
    for name in layer.active_adapters:
        p = getattr(layer.lora_dropout[name], "p", 0.0) if layer.training else 0.0
        a, b = (cast("Tensor", half[name].weight) for half in (layer.lora_A, layer.lora_B))
        yield Adapter(a, b, layer.scaling[name] / (1 - p), p)  # 1 - p: the same on average


def _forward(layer: Linear, x: Tensor) -> Tensor:
    if not layer.training or layer.merged:
        return Linear.forward(layer, x)
    result: Tensor = layer.base_layer(x)
    loops = kernels_for(x) if result.dtype == x.dtype and result.is_contiguous() else None
    for a, b, factor, p in adapters_of(layer):
        if loops and len(a) <= LOW:
            result = _Adapted.apply(result, x, a, b, factor, p)  # type: ignore[no-untyped-call]
            continue
        low: Tensor = _DroppedLinear.apply(x, a.to(x.dtype), p)  # type: ignore[no-untyped-call]
        result = result + linear(low, (b * factor).to(x.dtype))
    return result


@contextmanager
def quick_adapters(model: PeftModel) -> Iterator[None]:
    """Inside, plain LoRA layers compute as described above when the model is in training mode."""
    layers = [cast("Linear", layer) for layer in model.modules() if is_plain(layer)]
    with replaced({layer: partial(_forward, layer) for layer in layers}):
        yield


@torch.no_grad()
def weaken(model: PeftModel, strength: float) -> None:
    """Multiplies the update of an adapter, in place.

    Between the backbone (0) and the tuned model (1) there is often one better than both: what the
    backbone knew is diluted less (Wortsman et al., 2022, WiSE-FT).
    """
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.mul_(strength)
