"""A backbone is any causal language model: a hub id, a local folder or a GGUF file."""

from __future__ import annotations

import hashlib
import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import RepositoryNotFoundError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from tallrec.llm.converted import converted_folder, keep_converted
from tallrec.llm.int8 import all_in_int8, reads_bfloat16
from tallrec.llm.memory import give_back_freed_memory, keep_few_kernels, keep_freed_memory
from tallrec.llm.processor import multiplies_bfloat16_fast
from tallrec.llm.scoring import check_readable
from tallrec.llm.sharding import is_sharded, make_decodable, sharding_options
from tallrec.llm.weights import check_shard, quantization
from tallrec.processes import first_alone, local_rank, together, told_by_first
from tallrec.quiet import without_bars

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Backbone:
    """A loaded base model.

    Attributes:
        name: What it is called in runs and reports: the asset name, hub id or path as given.
        model: The model, in evaluation mode, on its device.
        tokenizer: Its tokenizer.
        fingerprint: Identifies the weights: `sha256:` and the hash of the weight files, or
            `commit:` with id and revision for a model of the hub.
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
    source: str | Path,
    *,
    name: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str = "none",
    shard: str = "none",
    int8: bool = False,
) -> Backbone:
    """Loads a causal language model and its tokenizer.

    Args:
        source: A local folder (of safetensors or holding one GGUF file), a `.gguf` file, or a
            Hugging Face id (of a model with safetensors). GGUF weights are dequantized.
        name: What to call it; `source` unless given.
        dtype: `auto` (see `choose_dtype`) or one of `float32`, `bfloat16`, `float16`.
        device: `auto` (a GPU if there is one) or a torch device such as `cpu` or `cuda:1`.
        quantize: `none`, or how the weights of linear layers are kept: `int8` (Dettmers et al.,
            2022) or `nf4` (QLoRA, Dettmers et al., 2023), computed in `dtype`. Needs bitsandbytes.
        shard: `none`, or `fsdp`: each of the processes that are joined holds a part of the weights,
            and all must call the model at the same time. One process alone holds all.
        int8: Whether its products will be of eight bits (`tallrec.llm.int8`).

    Raises:
        ValueError: If nothing loadable is at `source`, its weights are incomplete, its logits
            cannot be read (see `check_readable`) or an option is unknown.
    """
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(dtype, torch_device, int8=int8)
    if torch_device.type == "cpu":
        keep_freed_memory()
        keep_few_kernels()
    folder, gguf = locate(str(source))
    bits = quantization(quantize, torch_dtype, gguf)
    check_shard(shard, quantize, gguf)
    local = Path(folder).is_dir()
    options = {} if local else _hub_options(folder)
    if shard == "fsdp" and together() > 1:
        options |= sharding_options()
    try:
        with without_bars() if local else nullcontext():  # a download may show its bars
            tokenizer, model = (
                _load_gguf(gguf, torch_dtype, torch_device)
                if gguf
                else _load(folder, torch_dtype, torch_device, bits, options)
            )
    except Exception as error:  # a broken file breaks its reader in any way
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"cannot load a causal language model from {source}: {reason}") from error
    if torch_dtype != choose_dtype(dtype, torch_device) and not all_in_int8(model):
        nn.Module.to(model, torch.float32)
    name = str(name or source)
    model.name_or_path = name
    check_readable(model, name)
    # Of weights that are many, one process reads all for their hash.
    fingerprint = told_by_first(lambda: _fingerprint(folder, gguf, model))
    give_back_freed_memory()
    return Backbone(name, model, tokenizer, fingerprint)


def choose_device(device: str) -> torch.device:
    """`auto` becomes a GPU where there is one; of several processes, each has one of its own.

    Raises:
        ValueError: If the device is not a torch device or not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu or cuda; got {device!r}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no GPU; use --device cpu")
    if chosen.type == "cuda" and together() > 1:
        if chosen.index is not None:
            raise ValueError(
                f"several processes cannot all compute on {device}: give device cuda or auto, and "
                f"each takes one of its machine's GPUs"
            )
        return torch.device("cuda", local_rank())
    return chosen


def choose_dtype(dtype: str, device: torch.device, *, int8: bool = False) -> torch.dtype:
    """`auto` becomes bfloat16 where the machine computes it fast, else float32.

    Args:
        dtype: As `load_backbone` takes it.
        device: Where the model will be.
        int8: Whether its products will be of eight bits; where these are possible, what is between
            them computes in float32 anyway, and bfloat16 is half of what it reads.

    Raises:
        ValueError: If the dtype is unknown.
    """
    if dtype == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = multiplies_bfloat16_fast() or (int8 and reads_bfloat16())
        return torch.bfloat16 if fast else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}; got {dtype!r}")
    return DTYPES[dtype]


def locate(source: str) -> tuple[str, Path | None]:
    """Splits a source into what `from_pretrained` wants: a folder or id, and a GGUF file.

    Raises:
        ValueError: If nothing loadable is there.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(f"{source} is a file, but not a .gguf file; give a folder or a .gguf")
        return str(path.parent), path
    if not path.is_dir():
        inside_a_folder = len(path.parts) > 1 and Path(path.parts[0]).is_dir()
        if inside_a_folder or path.suffix == ".gguf" or not _HUB_ID.fullmatch(source):
            raise ValueError(f"there is no model folder or .gguf file at {source}")
        return source, None
    if (path / "config.json").exists():
        return str(path), None
    found = sorted(path.glob("*.gguf"))
    if len(found) != 1:
        raise ValueError(
            f"{source} holds neither config.json nor exactly one .gguf file "
            f"({len(found)} there); give a model folder or name the .gguf file"
        )
    return str(path), found[0]


def _hub_options(model_id: str) -> dict[str, Any]:
    """Asks the hub once: transformers asks for minutes whether a mistyped path is a model there."""
    try:
        HfApi().model_info(model_id, timeout=10)
    except RepositoryNotFoundError:
        raise ValueError(
            f"{model_id} is neither a folder or .gguf file here nor a model on the Hugging Face "
            f"hub that you may read"
        ) from None
    except Exception as error:  # of whatever HTTP library the hub's client uses
        if not isinstance(try_to_load_from_cache(model_id, "config.json"), str):
            raise ValueError(
                f"{model_id} is neither a folder or .gguf file here nor a cached model, and the "
                f"Hugging Face hub does not answer: {error}"
            ) from error
        return {"local_files_only": True}
    return {}


def _load(
    folder: str,
    dtype: torch.dtype,
    device: torch.device,
    bits: BitsAndBytesConfig | None = None,
    options: dict[str, Any] | None = None,
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    # Neither code nor pickles of a model's author are run.
    options = {"use_safetensors": True, **(options or {}), "trust_remote_code": False}
    names = {name: value for name, value in options.items() if name != "quantization_config"}
    tokenizer = AutoTokenizer.from_pretrained(folder, **names)
    if bits:  # such weights are made on their device and cannot be moved
        options |= {"quantization_config": bits, "device_map": {"": device}}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, **options
    )
    model, report = loaded
    if missing := report["missing_keys"]:
        raise ValueError(
            f"{len(missing)} tensors of a {type(model).__name__} are not in its weights, "
            f"such as {min(missing)}"
        )
    if is_sharded(model):
        make_decodable(model)
        return tokenizer, model.eval()
    return tokenizer, (model if bits else model.to(device)).eval()


def _load_gguf(
    gguf: Path, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Loads what the file was converted to, or converts it."""
    folder = converted_folder(gguf, dtype)
    with first_alone():
        if not folder.is_dir():
            return _convert(gguf, folder, dtype, device)
    return _load(str(folder), dtype, device)


def _convert(
    gguf: Path, folder: Path, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    options = {
        "gguf_file": gguf.name,
        "quantization_config": GgufConfig(dequantize=True),
        "use_safetensors": None,
    }
    tokenizer, model = _load(str(gguf.parent), dtype, device, options=options)
    _forget_quantization(model)
    keep_converted(folder, model, tokenizer)
    return tokenizer, model


def _forget_quantization(model: PreTrainedModel) -> None:
    """A dequantized model is a plain one, but keeps marks that refuse training and saving."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, mark):
            delattr(model, mark)


def _fingerprint(folder: str, gguf: Path | None, model: PreTrainedModel) -> str:
    path = Path(folder)
    if not path.is_dir():
        return f"commit:{folder}@{getattr(model.config, '_commit_hash', None)}"
    digest = hashlib.sha256()
    for file in [gguf] if gguf else sorted(path.glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
