"""What the libraries below do with memory that is free, and how much they keep."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, malloc.h

_KERNELS = 64  # a pass of SmolLM2, forward and backward, needs fewer than 64
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # of oneDNN, of ideep


def keep_few_kernels() -> None:
    """Bounds what torch's libraries keep for each shape of matrices that they have multiplied.

    They keep 1,024 kernels each, some 600 MiB and as much again lost between them, in case a shape
    comes again. Few do, but in the layers of the same pass. They ask for their limits when they are
    first used; who has set one keeps it.
    """
    for name in _CACHES:
        os.environ.setdefault(name, str(_KERNELS))


def keep_freed_memory() -> None:
    """Keeps freed memory for the next large tensor instead of giving it back to the system.

    glibc maps every tensor above 32 MiB anew, and the system clears its pages: up to a third of the
    time of a forward pass on a CPU. Elsewhere nothing changes.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # musl has none
        library.mallopt(_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def give_back_freed_memory() -> None:
    """Gives the system what is free now: reading a tokenizer leaves 100 MiB in small holes."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
