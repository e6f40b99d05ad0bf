"""How a backbone's frozen weights are kept: as they are, in fewer bits, or in parts."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import BitsAndBytesConfig

if TYPE_CHECKING:
    import torch


def quantization(quantize: str, dtype: torch.dtype, gguf: Path | None) -> BitsAndBytesConfig | None:
    """What transformers wants to hear of a way to quantize weights.

    Raises:
        ValueError: If it is unknown, takes no such weights, or bitsandbytes is not installed.
    """
    if quantize == "none":
        return None
    if quantize not in ("int8", "nf4"):
        raise ValueError(f"quantize must be none, int8 or nf4; got {quantize!r}")
    if gguf:
        raise ValueError(
            f"quantize {quantize} takes a model folder or hub id; {gguf.name} is a GGUF file"
        )
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"quantize {quantize} needs a package that is not installed: pip install 'tallrec[gpu]'"
        )
    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def check_shard(shard: str, quantize: str, gguf: Path | None) -> None:
    """Refuses weights that cannot be sharded.

    Raises:
        ValueError: If that is so.
    """
    if shard not in ("none", "fsdp"):
        raise ValueError(f"shard must be none or fsdp; got {shard!r}")
    if shard == "fsdp" and (quantize != "none" or gguf):
        kind = f"quantize {quantize}" if gguf is None else f"the GGUF file {gguf and gguf.name}"
        raise ValueError(
            f"shard fsdp takes weights as they are in a model folder or on the hub, not {kind}: "
            f"shard, or quantize and let each process hold all of the weights"
        )
