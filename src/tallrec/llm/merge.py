"""Adapters folded into the weights they change: while a model only reads, or for good."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from tallrec.llm.lora import is_plain
from tallrec.llm.sharding import is_sharded

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import Linear
    from torch import Tensor
    from transformers import PreTrainedModel


@contextmanager
def merged(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Inside, a layer's weights are W + scale B A, added in float32 and then cast.

    Afterwards the weights are what they were, bit for bit. Layers of which that is not the whole
    update (quantized weights, DoRA, trained biases), and those of sharded weights, keep computing
    it beside the weights.

    Args:
        model: A model; without an adapter nothing happens.
    """
    modules = () if is_sharded(model) else model.modules()
    layers = [cast("Linear", layer) for layer in modules if is_plain(layer)]
    weights: list[Tensor] = []
    try:
        for layer in layers:
            weight = _weight(layer)
            weights.append(weight.data)
            weight.data = _sum(layer, weight.data)
            layer.merged_adapters.extend(layer.active_adapters)
        yield
    finally:
        for layer, weight in zip(layers, weights, strict=False):
            _weight(layer).data = weight
            layer.merged_adapters.clear()


def fold(model: PeftModel) -> PreTrainedModel:
    """Folds an adapter into the weights for good, as `merged` does, and takes it off.

    Args:
        model: A model with an adapter; its backbone's weights are changed.

    Returns:
        The backbone's model, which is now the tuned one.

    Raises:
        ValueError: If the adapter is more than W + scale B A, or the weights are quantized.
    """
    for name, layer in model.named_modules():
        tuned = isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper)
        if tuned and not is_plain(layer):
            raise ValueError(
                f"the adapter's layer {name} is no plain LoRA on plain weights and cannot be "
                f"merged into them: export with --to peft"
            )
    for layer in model.modules():
        if is_plain(layer):
            plain = cast("Linear", layer)
            _weight(plain).data = _sum(plain, _weight(plain).data)
    return cast("PreTrainedModel", model.unload())


def _weight(layer: Linear) -> Tensor:
    return cast("Tensor", layer.get_base_layer().weight)


@torch.no_grad()
def _sum(layer: Linear, weight_oi: Tensor) -> Tensor:
    sum_oi = weight_oi.float()
    for name in layer.active_adapters:
        sum_oi = sum_oi + layer.get_delta_weight(name).float()
    return sum_oi.to(weight_oi.dtype)
