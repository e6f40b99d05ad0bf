"""Frozen weights of which each process holds a part (FSDP2), gathered layer by layer when needed.

transformers reads each process its part of the files and puts torch's `fully_shard` on the layers.
The adapter is added afterwards: it is small, and every process holds all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers.distributed.configuration_utils import DistributedConfig

from tallrec.processes import together

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel


def sharding_options() -> dict[str, Any]:
    """What `from_pretrained` wants to hear where processes share the weights of a model."""
    return {"distributed_config": DistributedConfig(fsdp_size=together())}


def is_sharded(model: Module) -> bool:
    """Whether this process holds only a part of a model's frozen weights."""
    return bool(getattr(model, "_is_fsdp_managed_module", False))


def make_decodable(model: PreTrainedModel) -> None:
    """Lets a sharded model's layers be called without its head; see `decode`.

    Gathering starts with a call of the whole model, unless a method is named that does too.
    """
    model.requires_grad_(False)  # before the first call, which makes whole weights from the parts
    model.tallrec_decode = model.base_model.__call__  # type: ignore[assignment]
    register_fsdp_forward_method(model, "tallrec_decode")
    # Trainer would write no checkpoints of a model so marked. What it writes here is the adapter
    # and the adapter's optimizer, of which every process holds all.
    model._is_distributed_loading_by_transformers = False
    model._tp_size = None  # PEFT takes 1 for more than one, and would gather all weights to save


def decode(model: PreTrainedModel, **inputs: Any) -> Any:
    """Calls a model's layers without its head, wherever their weights are."""
    call = model.tallrec_decode if is_sharded(model) else model.base_model
    return call(**inputs)  # type: ignore[operator]


def put_back(model: Module) -> None:
    """Keeps of each weight the process's own part only.

    A pass without a backward pass leaves some weights whole. What one process does alone, such as
    saving, would put back its own, and the next time it would ask the others for theirs in vain.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(weight: Tensor) -> Tensor:
    """All of a weight, of which this process may hold a part."""
    gathered: Tensor = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    return gathered
