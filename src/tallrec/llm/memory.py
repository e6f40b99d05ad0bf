"""What the libraries below do with memory that is free, and how much they keep."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, malloc.h

_PAGE_OUT = 21  # of madvise, mman.h
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


def page_out(tensors: Iterable[Tensor]) -> None:
    """Gives the system the memory of tensors that are not needed for a while.

    They stay what they are. What safetensors has read is a view of its file, and comes from there
    again when it is needed; what is not may go to swap, if there is any. Elsewhere than on Linux
    nothing changes.
    """
    if sys.platform != "linux":
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    page = mmap.PAGESIZE
    for tensor in tensors:
        start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        start, stop = -(-start // page) * page, stop // page * page  # whole pages of its own
        if start < stop:
            advise(start, stop - start, _PAGE_OUT)
