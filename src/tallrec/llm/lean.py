"""Norms, gated MLPs and attention that go over their activations once and keep less of them.

Of a layer's activations, most of what torch keeps for gradients can be had again for next to
nothing: a norm's input in float32, the activation of a gate. Here the inputs alone are kept, in the
model's dtype. Of the last layer, all but keys and values is computed only where it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tallrec.llm.forward import decoder_of
from tallrec.llm.fused import kernels_for, kernels_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from peft import PeftModel
    from transformers import PreTrainedModel

_tried: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_SILU = (nn.SiLU, SiLUActivation)
_ATTENDING = {"q_proj", "k_proj", "v_proj", "o_proj"}
_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}


class _Norm(torch.autograd.Function):
    """x / rms(x) * weight, in float32 (Zhang and Sennrich, 2019); the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_d: Tensor, epsilon: float) -> Tensor:
        normed, scale = _normed(x, weight_d, epsilon)
        ctx.save_for_backward(x, weight_d, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, weight_d, scale = ctx.saved_tensors
        kernels = kernels_for(x) if x.dtype == weight_d.dtype else None
        if kernels:
            return kernels.norm_backward(grads[0], x, weight_d, scale), None, None
        normed, grad = x * scale, grads[0].float() * weight_d
        drift = (grad * normed).mean(-1, keepdim=True)
        return torch.addcmul(grad, normed, drift, value=-1).mul_(scale).to(x.dtype), None, None


def _normed(x: Tensor, weight_d: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Of each token the norm and 1 / rms(x)."""
    kernels = kernels_for(x) if x.dtype == weight_d.dtype else None
    if kernels:
        return cast("tuple[Tensor, Tensor]", kernels.norm(x, weight_d, epsilon))
    wide = x.float()
    scale = wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
    return (wide * scale).to(x.dtype).mul_(weight_d), scale


@dataclass(frozen=True)
class Normed:
    """How to have a norm's result again, from what the norm keeps for its own gradients.

    Attributes:
        x: The norm's input.
        weight_d: Its weight.
        epsilon: What it adds to the mean square.
    """

    x: Tensor
    weight_d: Tensor
    epsilon: float

    @staticmethod
    def of(y: Tensor) -> Normed | None:
        """If y is what a lean norm gave, and nothing has changed it since."""
        found, version = getattr(y, "normed", (None, None))
        return found if found and y._version == version else None

    def __call__(self) -> Tensor:
        """The same numbers, to the last bit."""
        return _normed(self.x, self.weight_d, self.epsilon)[0]


class _Gated(torch.autograd.Function):
    """act(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        if (kernels := kernels_for(gate)) and isinstance(act, _SILU):
            return cast("Tensor", kernels.gated(gate, up))
        return act(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        if (kernels := kernels_for(gate)) and isinstance(ctx.act, _SILU):
            return (*kernels.gated_backward(grads[0], gate, up), None)
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            active = ctx.act(gate)
        (d_gate,) = torch.autograd.grad(active, gate, grads[0] * up)
        return d_gate, active.detach().mul_(grads[0]), None


class _Rotated(torch.autograd.Function):
    """Rotary position embedding of heads by halves (Su et al., 2021), by compiled loops only."""

    @staticmethod
    def forward(ctx: Any, x_bthd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.to(x_bthd.dtype), sin.to(x_bthd.dtype)
        ctx.save_for_backward(cos, sin)
        kernels = kernels_of(x_bthd)
        return cast("Tensor", kernels.rotated(x_bthd, cos, sin))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        kernels = kernels_of(grads[0])
        return kernels.rotated(grads[0], *ctx.saved_tensors, -1.0), None, None


def _norm(module: Any, x: Tensor) -> Tensor:
    y: Any = _Norm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-untyped-call]
    if y.requires_grad:  # in inference mode tensors have no version
        y.normed = Normed(x.detach(), module.weight, module.variance_epsilon), y._version
    return cast("Tensor", y)


def _gated(module: Any, x: Tensor) -> Tensor:
    gated = _Gated.apply(module.gate_proj(x), module.up_proj(x), module.act_fn)  # type: ignore[no-untyped-call]
    return cast("Tensor", module.down_proj(gated))


def _attention(
    module: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    read: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Llama's attention, as many families have it; `read` are the only tokens that look."""
    key, value = (
        projection(hidden_states).unflatten(-1, (-1, module.head_dim))
        for projection in (module.k_proj, module.v_proj)
    )
    key = _Rotated.apply(key, *position_embeddings)  # type: ignore[no-untyped-call]
    if read is not None:
        hidden_states = hidden_states.index_select(1, read)
        cos, sin = position_embeddings
        position_embeddings = cos.index_select(1, read), sin.index_select(1, read)
    query = module.q_proj(hidden_states).unflatten(-1, (-1, module.head_dim))
    query = _Rotated.apply(query, *position_embeddings)  # type: ignore[no-untyped-call]
    output, weights = attend(module, query, key, value, attention_mask, past_key_values, **kwargs)
    return module.o_proj(output.flatten(2)), weights


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    past_key_values: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as a model's configuration says, of [b, t, heads, d]."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, module.layer_idx)
    function = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]
    attended: tuple[Tensor, Tensor | None] = function(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=module.attention_dropout if module.training else 0.0,
        scaling=module.scaling,
        **kwargs,
    )
    return attended


def last_layer(module: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    """A layer of Llama; after keys and values only for the tokens that a tree's plan reads."""
    normed = module.input_layernorm(hidden_states)
    read = getattr(kwargs.get("tree"), "read", None)
    if read is not None and len(read) < hidden_states.shape[1]:
        kwargs["read"] = read
        hidden_states = hidden_states.index_select(1, read)
    hidden_states = hidden_states + module.self_attn(hidden_states=normed, **kwargs)[0]
    gated: Tensor = module.mlp(module.post_attention_layernorm(hidden_states))
    return hidden_states + gated


def leaner_of(module: Any) -> Callable[..., Any] | None:
    """What can take the place of a module's forward pass, if anything."""
    children = dict(module.named_children()).keys()
    if hasattr(module, "variance_epsilon") and hasattr(module, "weight"):
        if torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()):
            return None
        return _norm if _agree(module, _norm, module.weight, len(module.weight)) else None
    if children == _GATED:
        gate = module.gate_proj
        return _gated if _agree(module, _gated, gate.weight, gate.in_features) else None
    rotates = children == _ATTENDING and hasattr(module, "head_dim")
    if rotates and kernels_for(module.q_proj.weight):
        return _attention if _agree_rotated(module, _attention, module) else None
    return None


def is_silu_gated(module: nn.Module) -> bool:
    """Whether a module is found to compute down(silu(gate) * up)."""
    gated = dict(module.named_children()).keys() == _GATED and isinstance(module.act_fn, _SILU)
    return gated and leaner_of(module) is _gated


def is_llamas(layer: nn.Module) -> bool:
    """Whether a decoder layer is found to compute Llama's formula, its MLP by any activation."""
    parts = dict(layer.named_children())
    can = parts.keys() == _LAYER and leaner_of(parts["self_attn"]) is _attention
    return can and _agree_rotated(layer, last_layer, parts["self_attn"])


def is_norm(module: nn.Module) -> bool:
    """Whether a module is found to compute x / rms(x) * weight, the weight frozen."""
    return leaner_of(module) is _norm


def layers_of(model: PreTrainedModel | PeftModel) -> Sequence[nn.Module]:
    """A decoder's layers, as most families name them; none if it names them otherwise."""
    return cast("Sequence[nn.Module]", getattr(decoder_of(model), "layers", ()))


def _agree_rotated(module: nn.Module, leaner: Callable[..., Any], attention: Any) -> bool:
    query, angles = attention.q_proj, torch.linspace(0, 6, attention.head_dim).view(1, 2, -1)
    angles = angles.repeat(1, 1, 2).to(query.weight.dtype)
    rotation = angles.cos(), angles.sin()
    more = {"position_embeddings": rotation, "attention_mask": None}
    return _agree(module, leaner, query.weight, query.in_features, **more)


@torch.no_grad()
def _agree(
    module: nn.Module, leaner: Callable[..., Any], weight: Tensor, width: int, **more: Any
) -> bool:
    """Tried once on a few numbers: families differ in what they do under the same names."""
    if module not in _tried:
        numbers = torch.linspace(-2, 2, 2 * width, device=weight.device).sin().view(1, 2, width)
        x = numbers.to(weight.dtype if weight.is_floating_point() else torch.bfloat16)
        was_training = module.training
        module.eval()
        try:
            ours, own = leaner(module, x, **more), module(x, **more)
            if isinstance(own, tuple):
                ours, own = ours[0], own[0]
            allowed = 4 * torch.finfo(own.dtype).eps * own.float().norm()
            _tried[module] = bool((ours - own).float().norm() <= allowed)
        except (AttributeError, KeyError, RuntimeError, TypeError):
            _tried[module] = False
        finally:
            module.train(was_training)
    return _tried[module]
