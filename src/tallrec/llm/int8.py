"""Products of eight bits in place of a model's own, forward and backward.

A row of activations, or of their gradients, and a row of weights are each rounded to steps of 1/127
of their largest number (Dettmers et al., 2022, LLM.int8; Wortsman et al., 2023, SwitchBack). A few
channels of a language model are a hundred times as large as the rest, which would be left with few
steps: both are rotated before, which spreads such a channel over 64 and leaves the product what it
was (Ashkboos et al., 2024, QuaRot). Only frozen weights are rounded; adapters beside them are not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tallrec.llm.forward import decoder_of
from tallrec.llm.fused import kernels_for
from tallrec.llm.sharding import is_sharded

if TYPE_CHECKING:
    from types import ModuleType

    from peft import PeftModel
    from transformers import PreTrainedModel

# Shape letters: n tokens, i inputs and o outputs of a layer.

_log = logging.getLogger(__name__)
_ROTATED = 64  # numbers that a rotation mixes; widths are multiples of it
_ZERO = 128  # of activations, which are unsigned
_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")


@dataclass(frozen=True)
class _Weight:
    """A layer's weights as torch's product of eight bits wants them."""

    of: Tensor
    version: int
    packed: Tensor
    steps_o: Tensor
    zeros_o: Tensor

    @classmethod
    def made(cls, weight_oi: Tensor) -> _Weight:
        whole_oi, steps_o1 = _kernels(weight_oi).rounded(weight_oi.data)
        packed = torch.ops.onednn.qlinear_prepack((whole_oi ^ _ZERO).view(torch.int8), None)
        zeros_o = torch.zeros(len(weight_oi), dtype=torch.int64)
        steps_o = steps_o1.flatten() / _ROTATED  # both sides of a product are sums of 64
        return cls(weight_oi.data, weight_oi._version, packed, steps_o, zeros_o)

    def is_of(self, weight_oi: Tensor) -> bool:
        same = self.of.data_ptr() == weight_oi.data_ptr()  # it is held: no other can lie there
        return same and self.version == weight_oi._version

    def times(self, rounded: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
        """y_no of rounded x_ni."""
        whole, steps = rounded
        scales = 1.0, _ZERO, self.packed, self.steps_o, self.zeros_o
        after: Any = "none", [], ""
        y: Tensor = torch.ops.onednn.qlinear_pointwise(whole, *scales, None, 1.0, 0, dtype, *after)
        scaled: Tensor = _kernels(y).scaled_(y, steps)
        return scaled


class _Inputs:
    """Rounded activations; layers that read the same share them."""

    def __init__(self) -> None:
        self._of: Tensor | None = None
        self._rounded: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._rounded is None or self._of is not x:
            self._of, self._rounded = x, _kernels(x).rounded(x)
        return self._rounded


class _Product(torch.autograd.Function):
    """x W' by eight bits; nothing is kept for the gradient of x, which is all there is."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rounded: tuple[Tensor, Tensor],
        weight: _Weight,
        transposed: _Weight,
    ) -> Tensor:
        ctx.transposed = transposed
        return weight.times(rounded, x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        rounded = _kernels(grads[0]).rounded(grads[0])
        return ctx.transposed.times(rounded, grads[0].dtype), None, None, None


_Kept: TypeAlias = WeakKeyDictionary[nn.Linear, _Weight]
_by_rows: _Kept = WeakKeyDictionary()
_by_columns: _Kept = WeakKeyDictionary()


def _weight(layer: nn.Linear, kept: _Kept, weight_oi: Tensor) -> _Weight:
    """A layer's rounded weights, which are made if they are not kept or have changed."""
    weight = kept.get(layer)
    if weight is None or not weight.is_of(weight_oi):
        weight = kept[layer] = _Weight.made(weight_oi)
    return weight


def _kernels(x: Tensor) -> ModuleType:
    return cast("ModuleType", kernels_for(x))


def _read(layer: nn.Linear, weight: _Weight, inputs: _Inputs, x: Tensor) -> Tensor:
    y = weight.times(inputs(x), x.dtype)
    return y if layer.bias is None else y + layer.bias


def _tuned(
    layer: nn.Linear, weight: _Weight, transposed: _Weight, inputs: _Inputs, x: Tensor
) -> Tensor:
    if not layer.training:  # validation, whose weights have the adapter in them
        return nn.functional.linear(x, layer.weight, layer.bias)
    y: Tensor = _Product.apply(x, inputs(x), weight, transposed)  # type: ignore[no-untyped-call]
    return y if layer.bias is None else y + layer.bias


@contextmanager
def reading_in_int8(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Inside, a decoder's linear layers multiply in eight bits; nothing has gradients.

    Where the machine or the model cannot, everything stays as it is, and the log says why, once.
    Rounded weights are kept for the next time, but for those that an adapter is folded into.

    Args:
        model: A model in evaluation mode on its device, its adapter merged.
    """
    inputs, forwards = _Inputs(), {}
    for name, layer in _layers(model):
        once = name.endswith(".base_layer")
        weight = _Weight.made(layer.weight) if once else _weight(layer, _by_rows, layer.weight)
        forwards[layer] = partial(_read, layer, weight, inputs)
    with _replaced(forwards):
        yield


@contextmanager
def tuning_in_int8(model: PeftModel) -> Iterator[None]:
    """Inside, products with frozen weights are of eight bits in training mode, both ways.

    Weights are held rounded by rows and by columns, as many bytes as they have in bfloat16, beside
    these, and kept for the next time. Where the machine or the model cannot: as `reading_in_int8`.

    Args:
        model: A model on its device with an adapter that is not merged.
    """
    inputs, forwards = _Inputs(), {}
    for _, layer in _layers(model):
        weight_oi = layer.weight
        if not weight_oi.requires_grad:
            by_rows = _weight(layer, _by_rows, weight_oi)
            both = by_rows, _weight(layer, _by_columns, weight_oi.T)
            forwards[layer] = partial(_tuned, layer, *both, inputs)
    with _replaced(forwards):
        yield


@contextmanager
def _replaced(forwards: Mapping[nn.Linear, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    for layer, forward in forwards.items():
        layer.forward = forward  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        for layer in forwards:
            del layer.forward


def _layers(model: PreTrainedModel | PeftModel) -> Iterator[tuple[str, nn.Linear]]:
    """Linear layers whose products can be of eight bits; none where it cannot be done."""
    if obstacle := _obstacle(model):
        _say(f"products of eight bits: {obstacle}; they stay in {model.dtype}")
        return
    for name, layer in decoder_of(model).named_modules():
        # An adapter's own are none of them, and too narrow are such as an expert's router.
        plain = type(layer) is nn.Linear and ".lora_" not in name and "forward" not in vars(layer)
        if plain and layer.in_features % _ROTATED == layer.out_features % _ROTATED == 0:
            yield name, cast("nn.Linear", layer)


def _obstacle(model: PreTrainedModel | PeftModel) -> str:
    """Why a model's products cannot be of eight bits; empty if they can."""
    if is_sharded(model):
        return "the weights are sharded"
    if model.device.type != "cpu":
        return f"the model is on {model.device}, and they are for a CPU"
    if not kernels_for(torch.empty(0, dtype=model.dtype)):
        return f"there are no compiled loops for {model.dtype} on this system"
    if not any(torch.cpu.get_capabilities().get(name) for name in _VNNI):
        return "the processor has no instructions for them (VNNI)"
    return "" if _works() else "the processor gives other results"


@cache
def _works() -> bool:
    """Tried once: without the instructions some processors overflow."""
    x_ni, weight_oi = torch.linspace(-99, 99, 512 * 256).sin().view(2, 256, 256)
    own = x_ni @ weight_oi.T
    try:
        ours = _Weight.made(weight_oi).times(_kernels(x_ni).rounded(x_ni), x_ni.dtype)
    except (AttributeError, RuntimeError):  # a torch without it
        return False
    return bool((ours - own).norm() <= 0.03 * own.norm())


@cache
def _say(message: str) -> None:
    _log.warning(message)
