"""Norms and gated activations that keep less for their gradients.

Of a layer's activations, most of what torch keeps can be had again for next to nothing: a norm's
input in float32, the activation of a gate. Here the inputs alone are kept, in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tallrec.llm.sharding import is_sharded

if TYPE_CHECKING:
    from collections.abc import Callable

    from peft import PeftModel
    from transformers import PreTrainedModel

_Forward: TypeAlias = "Callable[[nn.Module, Tensor], Tensor]"
_tried: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class _Norm(torch.autograd.Function):
    """x / rms(x) * weight, in float32 (Zhang and Sennrich, 2019); the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_d: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        scale = wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight_d, scale)
        return (wide * scale).to(x.dtype).mul_(weight_d)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, weight_d, scale = ctx.saved_tensors
        normed, grad = x * scale, grads[0].float() * weight_d
        drift = (grad * normed).mean(-1, keepdim=True)
        return torch.addcmul(grad, normed, drift, value=-1).mul_(scale).to(x.dtype), None, None


class _Gated(torch.autograd.Function):
    """act(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        return act(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            active = ctx.act(gate)
        (d_gate,) = torch.autograd.grad(active, gate, grads[0] * up)
        return d_gate, active.detach().mul_(grads[0]), None


def _norm(module: nn.Module, x: Tensor) -> Tensor:
    normed: Tensor = _Norm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-untyped-call]
    return normed


def _gated(module: Any, x: Tensor) -> Tensor:
    gated = _Gated.apply(module.gate_proj(x), module.up_proj(x), module.act_fn)  # type: ignore[no-untyped-call]
    return cast("Tensor", module.down_proj(gated))


def _leaner(module: Any) -> _Forward | None:
    """What can take the place of a module's forward pass, if anything."""
    if hasattr(module, "variance_epsilon") and hasattr(module, "weight"):
        frozen = not any(parameter.requires_grad for parameter in module.parameters())
        weight = module.weight
        return _norm if frozen and _agree(module, _norm, weight, len(weight)) else None
    if dict(module.named_children()).keys() == _GATED:
        gate = module.gate_proj
        return _gated if _agree(module, _gated, gate.weight, gate.in_features) else None
    return None


@torch.no_grad()
def _agree(module: nn.Module, leaner: _Forward, weight: Tensor, width: int) -> bool:
    """Tried once on a few numbers: families differ in what they do under the same names."""
    if module not in _tried:
        numbers = torch.linspace(-2, 2, 2 * width, device=weight.device).sin().view(1, 2, width)
        x = numbers.to(weight.dtype if weight.is_floating_point() else torch.bfloat16)
        was_training = module.training
        module.eval()
        try:
            ours, own = leaner(module, x), module(x)
            allowed = 4 * torch.finfo(own.dtype).eps * own.float().norm()
            _tried[module] = bool((ours - own).float().norm() <= allowed)
        except (RuntimeError, TypeError):
            _tried[module] = False
        finally:
            module.train(was_training)
    return _tried[module]


@contextmanager
def lean_layers(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Inside, norms and gated MLPs that are found to compute the usual formula keep less.

    Args:
        model: A model on its device. Norms that are tuned and sharded models are left alone.
    """
    modules = {  # validation scores inside tuning, where they are lean already
        module: leaner
        for module in (() if is_sharded(model) else model.modules())
        if "forward" not in vars(module) and (leaner := _leaner(module))
    }
    for module, leaner in modules.items():
        module.forward = partial(leaner, module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward
