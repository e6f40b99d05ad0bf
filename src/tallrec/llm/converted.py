"""GGUF files as folders of safetensors: converted once, read ten times as fast afterwards."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from safetensors import SafetensorError

from tallrec.assets import cache_folder
from tallrec.files import sha256, whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)


def converted_folder(gguf: Path, dtype: torch.dtype) -> Path:
    """Where a GGUF file's weights are kept in a dtype, whether or not they are there yet."""
    kind = str(dtype).removeprefix("torch.")
    name = f"{sha256(gguf)[:16]}-{kind}-transformers-{transformers.__version__}"
    return cache_folder() / "converted" / name


def keep_converted(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Writes a converted model; where that cannot be done, the log says so and all goes on."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        room = shutil.disk_usage(folder.parent).free
        if room < 2 * sum(p.numel() * p.element_size() for p in model.parameters()):
            raise OSError("too little room")
        with whole_folder(folder) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    except (OSError, SafetensorError) as error:
        _log.warning(
            "cannot keep the converted model in %s (%s): it is converted anew each time",
            folder.parent,
            error,
        )
