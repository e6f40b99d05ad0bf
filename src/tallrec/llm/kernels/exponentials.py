"""The exponentials of a row of scores, by vectors of a core."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tallrec.llm.kernels.arithmetic import EXP2, LEAST_EXPONENT
from tallrec.llm.kernels.tiles import LANES, BFloat, call, pointer, spread

_BYTES = 4  # of a score
_LONG, _WORD, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
_FLOATS, _WORDS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_WORD, LANES)
_HALVES = ir.VectorType(BFloat(), LANES)
_FMA, _FLOOR, _MAX, _SUM = (
    f"llvm.{name}.v{LANES}f32"
    for name in ("fma", "floor", "vector.reduce.fmax", "vector.reduce.fadd")
)
_LEAST = -3.4028235e38  # of float32


def _all(kind: Any, number: Any) -> Any:
    return ir.Constant(kind, LANES * [number])


def _larger(builder: Any, one: Any, other: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", one, other), one, other)


def _exp2(builder: Any, x: Any) -> Any:
    """As `arithmetic.exp2`."""
    x = _larger(builder, x, _all(_FLOATS, LEAST_EXPONENT))
    floor = call(builder, _FLOOR, x, x)
    f, p = builder.fsub(x, floor), _all(_FLOATS, EXP2[0])
    for number in EXP2[1:]:
        p = call(builder, _FMA, p, p, f, _all(_FLOATS, number))
    exponent = builder.shl(builder.fptosi(floor, _WORDS), _all(_WORDS, 23))
    return builder.bitcast(builder.add(builder.bitcast(p, _WORDS), exponent), _FLOATS)


class _Row:
    """Code that goes over a row of scores and one of weights."""

    def __init__(self, builder: Any, like: Any, places: Any, factor: Any) -> None:
        self._builder, self._narrow = builder, not isinstance(like, types.Float)
        self._scores, self._weights, self._n, length = cgutils.unpack_tuple(builder, places)
        self._whole = builder.udiv(self._n, _LONG(LANES))
        self._ends = builder.udiv(length, _LONG(LANES))
        self._factor = spread(builder, factor, _FLOATS)
        self.top = cgutils.alloca_once_value(builder, _all(_FLOATS, _LEAST))
        self.total = cgutils.alloca_once_value(builder, _all(_FLOATS, 0.0))

    def each(self, visit: Any) -> None:
        """Visits all vectors: where they are, and which of their lanes are seen (None: all)."""
        builder = self._builder
        with cgutils.for_range(builder, self._whole) as loop:
            visit(loop.index, None)
        with cgutils.for_range(builder, self._ends, start=self._whole) as loop:
            left = builder.sub(self._n, builder.mul(loop.index, _LONG(LANES)))
            left = spread(builder, builder.trunc(left, _WORD), _WORDS)
            lanes = ir.Constant(_WORDS, list(range(LANES)))
            visit(loop.index, builder.icmp_signed("<", lanes, left))

    def _scores_at(self, index: Any) -> Any:
        at = self._builder.mul(index, _LONG(LANES * _BYTES))
        return self._builder.load(pointer(self._builder, self._scores, at, _FLOATS), align=_BYTES)

    def find_top(self, index: Any, seen: Any) -> None:
        """The largest scores of each lane."""
        builder, scores = self._builder, self._scores_at(index)
        scores = builder.select(seen, scores, _all(_FLOATS, _LEAST)) if seen else scores
        builder.store(_larger(builder, scores, builder.load(self.top)), self.top)

    def weigh(self, index: Any, seen: Any) -> None:
        """Weights of scores, and their sum in each lane."""
        builder, scores = self._builder, self._scores_at(index)
        below = builder.load(self.top)
        exp = _exp2(builder, call(builder, _FMA, scores, scores, self._factor, below))
        exp = builder.select(seen, exp, _all(_FLOATS, 0.0)) if seen else exp
        builder.store(builder.fadd(builder.load(self.total), exp), self.total)
        bytes_each = _BYTES // 2 if self._narrow else _BYTES
        if self._narrow:
            kind = ir.FunctionType(_HALVES, [_FLOATS])
            name = f"llvm.x86.avx512bf16.cvtneps2bf16.{8 * _BYTES * LANES}"
            exp = builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [exp])
        at = builder.mul(index, _LONG(LANES * bytes_each))
        builder.store(exp, pointer(builder, self._weights, at, exp.type), align=bytes_each)

    def reduced(self, name: str, vector: Any, *start: Any) -> Any:
        """A number of all lanes."""
        kind = ir.FunctionType(_FLOAT, [*(one.type for one in start), _FLOATS])
        function = cgutils.get_or_insert_function(self._builder.module, kind, name)
        return self._builder.call(function, [*start, vector], fastmath=("reassoc",))


@intrinsic
def exponentials(_context: Any, like: Any, places: Any, factor: Any) -> Any:
    """Weights 2^(factor (score - the largest)) of those scores that are seen, 0 for the others.

    Args:
        like: A weight: float32, or a bfloat16 as its bits.
        places: Addresses of scores and weights, how many are seen, and how many there are.
        factor: Positive.

    Returns:
        The sum of the weights, and what is taken off the exponents.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row = _Row(builder, like, *arguments[1:])
        row.each(row.find_top)
        top = row.reduced(_MAX, builder.load(row.top))
        base = builder.fmul(top, arguments[2])
        builder.store(spread(builder, builder.fneg(base), _FLOATS), row.top)
        row.each(row.weigh)
        total = row.reduced(_SUM, builder.load(row.total), _FLOAT(0.0))
        return context.make_tuple(builder, signature.return_type, (total, base))

    return types.UniTuple(types.float32, 2)(like, places, factor), code
