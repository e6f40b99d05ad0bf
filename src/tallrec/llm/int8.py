"""Products of eight bits in place of a model's own, where it only reads.

A row of activations and a row of weights are each rounded to steps of 1/127 of their largest
number (dynamic quantization; Dettmers et al., 2022, LLM.int8). A few channels of a language model
are a hundred times as large as the rest, which would be left with few steps: both are rotated
before, which spreads such a channel over 64 and leaves the product what it was (Ashkboos et al.,
2024, QuaRot).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tallrec.llm.forward import decoder_of
from tallrec.llm.fused import kernels_for
from tallrec.llm.sharding import is_sharded

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# Shape letters: n tokens, i inputs and o outputs of a layer.

_log = logging.getLogger(__name__)
_ROTATED = 64  # numbers that a rotation mixes; widths are multiples of it
_LEAST = 64  # outputs of a layer that is worth it: not those of a router
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
    def of_layer(cls, weight_oi: Tensor) -> _Weight:
        rotated_oi = rotated(weight_oi.float()) / _ROTATED
        steps_o1 = rotated_oi.abs().amax(1, keepdim=True).clamp_(min=1e-30) / 127
        whole_oi = (rotated_oi / steps_o1).round_().to(torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(whole_oi, None)
        zeros_o = torch.zeros(len(weight_oi), dtype=torch.int64)
        return cls(weight_oi.data, weight_oi._version, packed, steps_o1.flatten(), zeros_o)

    def is_of(self, weight_oi: Tensor) -> bool:
        same = self.of.data_ptr() == weight_oi.data_ptr()  # it is held: no other can lie there
        return same and self.version == weight_oi._version


class _Inputs:
    """Rounded activations; layers that read the same share them."""

    def __init__(self) -> None:
        self._of: Tensor | None = None
        self._rounded: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._rounded is None or self._of is not x:
            kernels = kernels_for(x)
            assert kernels
            self._of, self._rounded = x, kernels.rounded(x)
        return self._rounded


_kept: WeakKeyDictionary[nn.Linear, _Weight] = WeakKeyDictionary()


def rotated(x: Tensor) -> Tensor:
    """X H, of which H H' is 64 times the identity: it mixes 16 runs of a row and 4 neighbours."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    four = torch.kron(two, two)
    runs = x.unflatten(-1, (16, -1, 4))  # type: ignore[no-untyped-call]
    return torch.einsum("...amb,ac,bd->...cmd", runs, torch.kron(four, four), four).flatten(-3)


def _multiply(layer: nn.Linear, weight: _Weight, inputs: _Inputs, x: Tensor) -> Tensor:
    whole, steps = inputs(x)
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        whole,
        1.0,
        _ZERO,
        weight.packed,
        weight.steps_o,
        weight.zeros_o,
        None,
        1.0,
        0,
        x.dtype,
        "none",
        [],
        "",
    )
    kernels = kernels_for(y)
    assert kernels
    y = kernels.scaled_(y, steps)
    return y if layer.bias is None else y + layer.bias


@contextmanager
def int8_products(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Inside, a decoder's linear layers multiply in eight bits; nothing has gradients.

    Where the machine or the model cannot, everything stays as it is, and the log says why, once.
    Rounded weights are kept for the next time, but for those that an adapter is folded into.

    Args:
        model: A model in evaluation mode on its device, its adapter merged.
    """
    if obstacle := _obstacle(model):
        _say(f"products of eight bits: {obstacle}; they stay in {model.dtype}")
    layers = {} if obstacle else dict(_layers(model))
    inputs = _Inputs()
    for layer, lasting in layers.items():
        weight = _kept.get(layer)
        if weight is None or not weight.is_of(layer.weight):
            weight = _Weight.of_layer(layer.weight)
        if lasting:
            _kept[layer] = weight
        layer.forward = partial(_multiply, layer, weight, inputs)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _layers(model: PreTrainedModel | PeftModel) -> Iterator[tuple[nn.Linear, bool]]:
    """The layers that can, and whether their weights last longer than this reading."""
    for name, layer in decoder_of(model).named_modules():
        plain = type(layer) is nn.Linear and ".lora_" not in name  # those of an adapter are merged
        if plain and layer.in_features % _ROTATED == 0 and layer.out_features >= _LEAST:
            yield cast("nn.Linear", layer), not name.endswith(".base_layer")


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
    layer = nn.Linear(256, 256, bias=False)
    x = torch.linspace(-2, 2, 32 * 256).mul(99).sin().view(32, 256)
    own = layer(x)
    try:
        ours = _multiply(layer, _Weight.of_layer(layer.weight), _Inputs(), x)
    except (AttributeError, RuntimeError):  # a torch without it
        return False
    return bool((ours - own).norm() <= 0.03 * own.norm())


@cache
def _say(message: str) -> None:
    _log.warning(message)
