"""Libraries that draw progress bars of their own, kept from doing so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging


@contextmanager
def without_bars() -> Iterator[None]:
    """No bars of transformers. Its GGUF reader draws one with tqdm itself, beyond every setting."""
    settings: Any = transformers_logging  # untyped
    reader: Any = modeling_gguf_pytorch_utils
    shown, own_tqdm = settings.is_progress_bar_enabled(), reader.tqdm
    settings.disable_progress_bar()
    reader.tqdm = settings.tqdm
    try:
        yield
    finally:
        reader.tqdm = own_tqdm
        if shown:
            settings.enable_progress_bar()
