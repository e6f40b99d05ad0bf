"""Where a decoder's passes over its activations are compiled loops (`tallrec.llm.kernels`)."""

from __future__ import annotations

import ctypes
import time
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

_DTYPES = (torch.bfloat16, torch.float32)


@cache
def openmp() -> ctypes.CDLL | None:
    """The runtime of torch's threads, if it is GNU's; on other systems torch has another one."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return ctypes.CDLL(str(found[0])) if found else None


def kernels_for(x: Tensor) -> ModuleType | None:
    """The compiled loops, if they can work on a tensor.

    They are imported when they are first asked for, which takes a second. Each is compiled when it
    is first run on a machine, which takes half a minute for all.
    """
    if x.device.type != "cpu" or x.dtype not in _DTYPES or openmp() is None:
        return None
    return _kernels()


@cache
def _kernels() -> ModuleType:
    forget_stale(Path(__file__).parent / "kernels")
    return import_module("tallrec.llm.kernels")


def forget_stale(folder: Path) -> None:
    """Has loops compiled again whose machine code is older than any module beside theirs.

    Numba looks at a loop's own module alone, not at those whose functions became a part of it.

    Args:
        folder: Where the modules are.
    """
    changed = max(module.stat().st_mtime_ns for module in folder.glob("*.py"))
    if changed > time.time_ns():  # by a clock that went ahead: all would be older each time
        return
    for index in (folder / "__pycache__").glob("*.nbi"):
        with suppress(OSError):  # another process was quicker, or nobody may
            if index.stat().st_mtime_ns < changed:
                index.unlink()


def kernels_of(x: Tensor) -> ModuleType:
    """The compiled loops, for a tensor of which is known that they can work on it."""
    return cast("ModuleType", kernels_for(x))
