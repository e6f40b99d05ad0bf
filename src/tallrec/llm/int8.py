"""Products of eight bits in place of a model's own, where the machine and the model can.

How they are computed says `tallrec.llm.int8_products`. Only frozen weights are rounded; adapters
beside them are not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from tallrec.llm.forward import decoder_of, takes_trees
from tallrec.llm.fused import kernels_for, kernels_of
from tallrec.llm.int8_layers import Int8Layer
from tallrec.llm.int8_products import (
    BY_COLUMNS,
    BY_ROWS,
    ROTATED,
    Inputs,
    Pair,
    Weight,
    gated,
    gated_pair,
    product,
    weight_of,
    works,
)
from tallrec.llm.int8_sums import layers_by_sums, multiplies_by_sums
from tallrec.llm.lean import is_silu_gated, layers_of
from tallrec.llm.lean_layers import LeanLayer
from tallrec.llm.memory import page_out
from tallrec.llm.processor import multiplies_bytes
from tallrec.llm.replaced import replaced
from tallrec.llm.sharding import is_sharded
from tallrec.llm.whole_layers import is_whole

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)
_Forward: TypeAlias = Callable[..., Tensor]


def _read(layer: nn.Linear, weight: Weight, inputs: Inputs, x: Tensor) -> Tensor:
    y = weight.times(inputs(x), x.dtype)
    return y if layer.bias is None else y + layer.bias


@dataclass
class _Unread:
    """Weights that are read in validation, which has the adapter in them, and not in tuning."""

    weights: list[Tensor]
    held: bool = True

    def by(self, module: nn.Module) -> bool:
        """Whether they are not read by a pass through a module; then their memory is let go."""
        if module.training and self.held:
            page_out(self.weights)
        self.held = not module.training
        return module.training


def _tuned(
    layer: nn.Linear, unread: _Unread, both: tuple[Weight, Weight], inputs: Inputs, x: Tensor
) -> Tensor:
    if not unread.by(layer):
        return nn.functional.linear(x, layer.weight, layer.bias)
    y = product(x, inputs, *both)
    return y if layer.bias is None else y + layer.bias


def _tuned_gated(
    mlp: nn.Module, unread: _Unread, own: _Forward, both: tuple[Pair, Pair], x: Tensor
) -> Tensor:
    return gated(x, *both) if unread.by(mlp) else own(x)


def _tuned_whole(
    layer: Int8Layer,
    unread: _Unread,
    own: _Forward,
    hidden_states: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    forward = layer if unread.by(layer.own) else own
    return forward(hidden_states, *args, **kwargs)


@contextmanager
def reading_in_int8(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Inside, a decoder's linear layers multiply in eight bits; nothing has gradients.

    Where the machine or the model cannot, everything stays as it is, and the log says why, once.
    Rounded weights are kept for the next time, but for those that an adapter is folded into.

    Args:
        model: A model in evaluation mode on its device, its adapter merged.
    """
    takes_trees(model, 0)  # tried here: in eight bits a float32 model would seem not to take them
    inputs, forwards = Inputs(), dict[nn.Module, _Forward]()
    parts = _parts(model)
    follow_each_other = len(parts.whole) == len(layers_of(model)) - 1
    if follow_each_other and multiplies_by_sums(parts.whole):
        forwards |= layers_by_sums(parts.whole)
    else:
        forwards |= {whole: Int8Layer.made(whole, tuned=False) for whole in parts.whole}
    for mlp in parts.mlps:
        forwards[mlp] = partial(gated, by_rows=gated_pair(mlp, BY_ROWS), by_columns=None)
    for name, layer in parts.layers.items():
        folded = name.endswith(".base_layer")
        made = Weight.made(layer.weight.data, ()) if folded else weight_of(layer, BY_ROWS)
        forwards[layer] = partial(_read, layer, made, inputs)
    with _computing(model, forwards):
        yield


@contextmanager
def tuning_in_int8(model: PeftModel) -> Iterator[None]:
    """Inside, products with frozen weights are of eight bits in training mode, both ways.

    Weights are held rounded by rows and by columns, as many bytes as they have in bfloat16, in
    place of these where they can be read again, and kept for the next time. Where the machine or
    the model cannot: as `reading_in_int8`.

    Args:
        model: A model on its device with an adapter that is not merged.
    """
    inputs, forwards = Inputs(), dict[nn.Module, _Forward]()
    parts = _parts(model, tuned=True)
    unread = _Unread(parts.weights)
    for whole in parts.whole:
        made = Int8Layer.made(whole, tuned=True)
        forwards[whole] = partial(_tuned_whole, made, unread, whole.forward)
    for mlp in parts.mlps:
        both = gated_pair(mlp, BY_ROWS), gated_pair(mlp, BY_COLUMNS)
        forwards[mlp] = partial(_tuned_gated, mlp, unread, mlp.forward, both)
    for layer in parts.layers.values():
        weights = weight_of(layer, BY_ROWS), weight_of(layer, BY_COLUMNS)
        forwards[layer] = partial(_tuned, layer, unread, weights, inputs)
    with _computing(model, forwards):
        yield


@contextmanager
def _computing(
    model: PreTrainedModel | PeftModel, forwards: dict[nn.Module, _Forward]
) -> Iterator[None]:
    for layer in layers_of(model):  # a whole one would pass by those of its parts
        is_lean = layer not in forwards and isinstance(vars(layer).get("forward"), LeanLayer)
        if is_lean and any(part in forwards for part in layer.modules()):
            forwards[layer] = partial(type(layer).forward, layer)
    with replaced(forwards):
        yield


class _Parts(NamedTuple):
    """What of a model can have products of eight bits, nothing twice; and all weights of it."""

    whole: list[nn.Module]
    mlps: list[nn.Module]
    layers: dict[str, nn.Linear]
    weights: list[Tensor]


def _parts(model: PreTrainedModel | PeftModel, *, tuned: bool = False) -> _Parts:
    """Decoder layers, gated MLPs and linear layers.

    Args:
        model: The model.
        tuned: Whether it is for tuning, where only frozen weights can be.
    """
    layers = _linear_layers(model, frozen=tuned)
    weights, linear = [layer.weight for layer in layers.values()], set(layers.values())
    # Of the last layer not all is computed (`tallrec.llm.lean`).
    others = layers_of(model)[:-1] if linear else ()
    whole = [layer for layer in others if is_whole(layer, linear.__contains__, beside=tuned)]
    linear -= {part for layer in whole for part in layer.modules()}
    mlps = [module for module in decoder_of(model).modules() if _is_gated(module, linear)]
    linear -= {part for mlp in mlps for part in mlp.children()}
    layers = {name: layer for name, layer in layers.items() if layer in linear}
    return _Parts(whole, mlps, layers, weights)


def _linear_layers(model: PreTrainedModel | PeftModel, *, frozen: bool) -> dict[str, nn.Linear]:
    if obstacle := _obstacle(model):
        _say(f"products of eight bits: {obstacle}; they stay in {model.dtype}")
        return {}
    layers: dict[str, nn.Linear] = {}
    for name, layer in decoder_of(model).named_modules():
        # An adapter's own are none of them, and too narrow are such as an expert's router.
        plain = type(layer) is nn.Linear and ".lora_" not in name and "forward" not in vars(layer)
        if not plain or (frozen and cast("nn.Linear", layer).weight.requires_grad):
            continue
        if layer.in_features % ROTATED == layer.out_features % ROTATED == 0:
            layers[name] = cast("nn.Linear", layer)
    return layers


def _is_gated(module: nn.Module, linear: Container[nn.Module]) -> bool:
    own = [getattr(module, part, None) for part in ("gate_proj", "up_proj", "down_proj")]
    can = all(part in linear and cast("nn.Linear", part).bias is None for part in own)
    return can and is_silu_gated(module)


def all_in_int8(model: PreTrainedModel | PeftModel) -> bool:
    """Whether all products with weights of a decoder can be of eight bits."""
    if _obstacle(model):
        return False
    rounded = {layer.weight for layer in _linear_layers(model, frozen=False).values()}
    tables = {m.weight for m in decoder_of(model).modules() if isinstance(m, nn.Embedding)}
    matrices = {weight for weight in decoder_of(model).parameters() if weight.dim() > 1}
    return matrices <= rounded | tables


def reads_bfloat16() -> bool:
    """Whether bfloat16 is quick here for a decoder whose products are all of eight bits.

    Also where products of bfloat16 are not: compiled loops read it, attention's too.
    """
    nothing = torch.empty(0, dtype=torch.bfloat16)
    return not _lacks(nothing.dtype) and bool(kernels_of(nothing).in_tiles(nothing.dtype))


def _obstacle(model: PreTrainedModel | PeftModel) -> str:
    """Why a model's products cannot be of eight bits; empty if they can."""
    if is_sharded(model):
        return "the weights are sharded"
    if model.device.type != "cpu":
        return f"the model is on {model.device}, and they are for a CPU"
    return _lacks(model.dtype)


def _lacks(dtype: torch.dtype) -> str:
    """What the machine lacks for them; empty if nothing."""
    kernels = kernels_for(torch.empty(0, dtype=dtype))
    if kernels is None:
        return f"there are no compiled loops for {dtype} on this system"
    if not (multiplies_bytes() or kernels.short_products.in_shorts()):
        return "the processor has no instructions for them (VNNI, or AVX2 for pairs of int16)"
    return "" if works() else "the processor gives other results"


@cache
def _say(message: str) -> None:
    _log.warning(message)
