"""A backbone is any causal language model: a hub id, a local folder or a GGUF file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers import logging as transformers_logging

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WEIGHTS = ("*.safetensors", "*.gguf", "pytorch_model*.bin")


@dataclass(frozen=True)
class Backbone:
    """A loaded base model.

    Attributes:
        name: What it is called in runs and reports: the asset name, hub id or path as given.
        model: The model, in evaluation mode, on its device.
        tokenizer: Its tokenizer.
        fingerprint: Identifies the weights: `sha256:` and the hash of the weight files, or
            `commit:` and the revision for a model of the hub.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str

    @property
    def max_positions(self) -> int:
        """The longest sequence the model was built for, in tokens."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", 2048))


def load_backbone(
    source: str | Path, *, name: str | None = None, dtype: str = "auto", device: str = "auto"
) -> Backbone:
    """Loads a causal language model and its tokenizer.

    Args:
        source: A local folder (of safetensors or holding one GGUF file), a `.gguf` file, or a
            Hugging Face id. GGUF weights are dequantized.
        name: What to call it; `source` unless given.
        dtype: `auto` (bfloat16 where the machine computes it fast, else float32) or one of
            `float32`, `bfloat16`, `float16`.
        device: `auto` (a GPU if there is one) or a torch device such as `cpu` or `cuda:1`.

    Raises:
        ValueError: If nothing loadable is at `source` or an option is unknown.
    """
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(dtype, torch_device)
    folder, gguf = _locate(str(source))
    options = {"gguf_file": gguf.name} if gguf else {}
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        if gguf:
            options["quantization_config"] = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch_dtype, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot load a causal language model from {source}: {reason}") from error
    if gguf:
        _forget_quantization(model)
    model.name_or_path = str(name or source)
    model.to(torch_device).eval()
    return Backbone(str(name or source), model, tokenizer, _fingerprint(folder, gguf, model))


def choose_device(device: str) -> torch.device:
    """`auto` becomes a GPU where there is one.

    Raises:
        ValueError: If the device is not a torch device or not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu or cuda; got {device!r}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no GPU; use --device cpu")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` becomes bfloat16 where the machine computes it in hardware, else float32.

    Raises:
        ValueError: If the dtype is unknown.
    """
    if dtype == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            flags = torch.cpu.get_capabilities()
            fast = bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"))
        return torch.bfloat16 if fast else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}; got {dtype!r}")
    return DTYPES[dtype]


def _locate(source: str) -> tuple[str, Path | None]:
    """Splits a source into what `from_pretrained` wants: a folder or id, and a GGUF file."""
    path = Path(source)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(f"{source} is a file, but not a .gguf file; give a folder or a .gguf")
        return str(path.parent), path
    if not path.is_dir():
        if path.is_absolute() or source.startswith(".") or source.count("/") > 1:
            raise ValueError(f"there is no model folder or .gguf file at {source}")
        return source, None
    if (path / "config.json").exists():
        return source, None
    found = sorted(path.glob("*.gguf"))
    if len(found) != 1:
        raise ValueError(
            f"{source} holds neither config.json nor exactly one .gguf file "
            f"({len(found)} there); give a model folder or name the .gguf file"
        )
    return source, found[0]


def _forget_quantization(model: PreTrainedModel) -> None:
    """A dequantized model is a plain one, but keeps marks that refuse training and saving."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, mark):
            delattr(model, mark)


def _fingerprint(folder: str, gguf: Path | None, model: PreTrainedModel) -> str:
    path = Path(folder)
    files = [gguf] if gguf else sorted(p for glob in _WEIGHTS for p in path.glob(glob))
    if path.is_dir():
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return f"sha256:{digest.hexdigest()}"
    return f"commit:{getattr(model.config, '_commit_hash', None)}"
