"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, malloc.h


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
