"""Numbers inside compiled loops: read, written, and what Numba's own functions are slow at.

bfloat16 is unknown to Numba: a number is read and written as its 16 bits, and computed in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from tallrec.llm.kernels.native import FLOAT, INT, LOOP, PART

LOG2_E = FLOAT(1.4426950408889634)
LEAST_EXPONENT = FLOAT(-126)
EXP2 = (  # of the polynomial of degree 5 that is nearest to 2^x on [0, 1), the highest power first
    FLOAT(0.0018775760),
    FLOAT(0.0089893416),
    FLOAT(0.0558263175),
    FLOAT(0.2401536107),
    FLOAT(0.6931530833),
    FLOAT(0.9999999404),
)


def wide(x: Any) -> Any:
    """A number of the model's dtype as a float32."""
    raise NotImplementedError


def narrow(x: Any, like: Any) -> Any:
    """A float32 in the dtype of `like`, rounded to the nearest, ties to even."""
    raise NotImplementedError


@overload(wide)
def _wide(x: Any) -> Any:
    if isinstance(x, types.Float):
        return _same

    def widened(x: Any) -> Any:
        return np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)

    return widened


@overload(narrow)
def _narrow(x: Any, like: Any) -> Any:  # noqa: ARG001 - its type tells
    if isinstance(like, types.Float):
        return _same_as

    def rounded(x: Any, like: Any) -> Any:  # noqa: ARG001
        bits = np.float32(x).view(np.uint32)
        odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        half = np.uint32(np.uint32(0x7FFF) + odd)
        return np.uint16(np.uint32(bits + half) >> np.uint32(16))

    return rounded


def _same(x: Any) -> Any:
    return x


def _same_as(x: Any, like: Any) -> Any:  # noqa: ARG001
    return x


def _as(x: Any, like: Any) -> Any:
    """A number in the dtype of `like`."""
    raise NotImplementedError


@overload(_as)
def _as_overload(x: Any, like: Any) -> Any:
    if x == like:
        return _same_as

    def other(x: Any, like: Any) -> Any:
        return narrow(wide(x), like)

    return other


@njit(**LOOP)
def copy(out: Any, x: Any) -> None:
    """A row, float32 or in the model's dtype, in the dtype of out."""
    for j in range(len(out)):
        out[j] = _as(x[j], out[j])


@njit(**PART)
def order(x: Any) -> Any:
    """int32 in the order of the float32 that they are made of.

    LLVM finds the largest of integers by vectors, that of floats one by one.
    """
    bits = FLOAT(x).view(np.int32)
    return INT(bits ^ INT(INT(bits >> INT(31)) & INT(0x7FFFFFFF)))


@njit(**PART)
def of_order(order: Any) -> Any:
    """The float32 of an `order`."""
    bits = INT(order ^ INT(INT(order >> INT(31)) & INT(0x7FFFFFFF)))
    return INT(bits).view(np.float32)


@njit(**PART)
def exp2(x: Any) -> Any:
    """2^x for x < 128, with a relative error of 2e-7; 2^-126 for what is less than -126.

    2^floor(x) times a polynomial.
    """
    x = x if x > LEAST_EXPONENT else LEAST_EXPONENT
    floor = np.floor(x)
    f = x - floor
    p = EXP2[0] * f + EXP2[1]
    p = p * f + EXP2[2]
    p = p * f + EXP2[3]
    p = p * f + EXP2[4]
    p = p * f + EXP2[5]
    exponent = np.int32(np.int32(floor) << np.int32(23))
    return np.int32(FLOAT(p).view(np.int32) + exponent).view(np.float32)


@njit(**PART)
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    exponent = -x * LOG2_E
    return FLOAT(1) / (FLOAT(1) + exp2(exponent if exponent < FLOAT(126) else FLOAT(126)))
