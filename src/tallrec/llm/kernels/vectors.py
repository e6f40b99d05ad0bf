"""Vectors of a core in the code that compiled loops are made of, by LLVM's instructions."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils, config


def can(*features: str) -> bool:
    """Whether loops are compiled for a processor with features, by LLVM's names."""
    if config.CPU_NAME or config.CPU_FEATURES:  # type: ignore[attr-defined] # for another one
        return False
    return all(llvm.get_host_cpu_features().get(feature) for feature in features)


IS_LONG, HAS_PAIRS = can("avx512f"), can("avx512bf16")
LANES = 16 if IS_LONG else 8  # of 32 bits
_BYTES = 4  # of a lane


class BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)


LONGS, WORD = ir.IntType(64), ir.IntType(32)
FLOATS, WORDS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(WORD, LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)


def call(builder: Any, name: str, like: Any, *values: Any) -> Any:
    """What a function of LLVM's gives for some values, of the type of like."""
    kind = ir.FunctionType(like.type, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


def pointer(builder: Any, address: Any, offset: Any, kind: Any) -> Any:
    """A pointer to what is some bytes behind an address."""
    return builder.inttoptr(builder.add(address, offset), kind.as_pointer())


def load(builder: Any, address: Any, offset: Any, kind: Any) -> Any:
    """What is some bytes behind an address."""
    return builder.load(pointer(builder, address, offset, kind), align=1)


def spread(builder: Any, word: Any, words: Any) -> Any:
    """A vector of one word."""
    nothing = ir.Constant(words, ir.Undefined)
    first = builder.insert_element(nothing, word, WORD(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(WORDS, None))


def _narrowed(builder: Any, floats: Any) -> Any:
    """As `arithmetic.narrow`: the bits of a vector in bfloat16."""
    if HAS_PAIRS:
        kind = ir.FunctionType(ir.VectorType(BFloat(), LANES), [FLOATS])
        name = "llvm.x86.avx512bf16.cvtneps2bf16.512"
        few = builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [floats])
        return builder.bitcast(few, _HALVES)

    def all_of(number: int) -> Any:
        return ir.Constant(WORDS, [number] * LANES)

    bits = builder.bitcast(floats, WORDS)
    odd = builder.and_(builder.lshr(bits, all_of(16)), all_of(1))
    whole = builder.add(bits, builder.add(odd, all_of(0x7FFF)))
    return builder.trunc(builder.lshr(whole, all_of(16)), _HALVES)


def store_floats(builder: Any, like: Any, address: Any, index: Any, floats: Any) -> None:
    """Writes one of an array's vectors, of numbers like one."""
    kind, size = (FLOATS, _BYTES) if isinstance(like, types.Float) else (_HALVES, _BYTES // 2)
    vector = floats if kind == FLOATS else _narrowed(builder, floats)
    at = builder.mul(index, LONGS(LANES * size))
    builder.store(vector, pointer(builder, address, at, kind), align=size)


def load_floats(builder: Any, like: Any, address: Any, index: Any) -> Any:
    """Reads one of an array's vectors, of numbers like one."""
    kind, size = (FLOATS, _BYTES) if isinstance(like, types.Float) else (_HALVES, _BYTES // 2)
    at = builder.mul(index, LONGS(LANES * size))
    vector = builder.load(pointer(builder, address, at, kind), align=size)
    if kind == FLOATS:
        return vector
    bits = builder.shl(builder.zext(vector, WORDS), ir.Constant(WORDS, LANES * [16]))
    return builder.bitcast(bits, FLOATS)
