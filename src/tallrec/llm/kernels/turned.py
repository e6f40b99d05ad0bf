"""Rotary position embeddings: heads of queries and keys turned by halves (Su et al., 2021)."""

from __future__ import annotations

from typing import Any

from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tallrec.llm.kernels.arithmetic import narrow, wide
from tallrec.llm.kernels.native import LOOP
from tallrec.llm.kernels.vectors import FLOATS, LANES, LONGS, load_floats, spread, store_floats

_MATH = ("contract",)  # as the loop's, so that both round alike


@intrinsic
def _turn(_context: Any, likes: Any, places: Any, sizes: Any, factors: Any) -> Any:
    """Heads whose halves are of whole vectors.

    Args:
        likes: Numbers of out, of x, and of cosines and sines.
        places: The addresses of the first two, of cosines, and of sines.
        sizes: Vectors of half a head, and heads.
        factors: What cosines and sines are times.
    """
    of_out, of_x, of_turn = likes

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        out, x, cosines, sines = cgutils.unpack_tuple(builder, arguments[1])
        half, n_heads = cgutils.unpack_tuple(builder, arguments[2])
        factors = cgutils.unpack_tuple(builder, arguments[3])
        with cgutils.for_range(builder, half) as part:
            c, s = (
                builder.fmul(
                    load_floats(builder, of_turn, at, part.index), spread(builder, one, FLOATS)
                )
                for at, one in zip((cosines, sines), factors, strict=True)
            )
            with cgutils.for_range(builder, n_heads) as head:
                start = builder.mul(builder.mul(head.index, half), LONGS(2))
                first = builder.add(start, part.index)
                places = first, builder.add(first, half)
                one, other = (load_floats(builder, of_x, x, at) for at in places)
                one_c, one_s, other_c, other_s = (
                    builder.fmul(x, y, flags=_MATH) for x in (one, other) for y in (c, s)
                )
                turned = (
                    builder.fsub(one_c, other_s, flags=_MATH),
                    builder.fadd(other_c, one_s, flags=_MATH),
                )
                for at, vector in zip(places, turned, strict=True):
                    store_floats(builder, of_out, out, at, vector)
        return context.get_dummy_value()

    return types.void(likes, places, sizes, factors), code


@njit(**LOOP)
def turn_heads(out: Any, x: Any, cos_e: Any, sin_e: Any, factors: Any) -> None:
    """Rotates each head of a row by halves, by cosines and sines times factors."""
    half = len(cos_e) // 2
    if half % LANES == 0:
        places = out.ctypes.data, x.ctypes.data, cos_e.ctypes.data, sin_e.ctypes.data
        sizes = half // LANES, len(out) // (2 * half)
        _turn((out[0], x[0], cos_e[0]), places, sizes, factors)  # type: ignore[call-arg]
        return
    for at in range(0, len(out), 2 * half):
        first, second = x[at : at + half], x[at + half : at + 2 * half]
        out_first, out_second = out[at : at + half], out[at + half : at + 2 * half]
        for j in range(half):
            one, other = wide(first[j]), wide(second[j])
            c, s = wide(cos_e[j]) * factors[0], wide(sin_e[j]) * factors[1]
            out_first[j] = narrow(one * c - other * s, out_first[j])
            out_second[j] = narrow(other * c + one * s, out_second[j])
