"""The exponentials of a row of scores, by vectors of a core."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tallrec.llm.kernels.arithmetic import EXP2, LEAST_EXPONENT
from tallrec.llm.kernels.vectors import (
    FLOATS,
    IS_LONG,
    LANES,
    LONGS,
    WORD,
    WORDS,
    call,
    can,
    pointer,
    spread,
    store_floats,
)

_BYTES = 4  # of a score
_FLOAT = ir.FloatType()
_FMA, _FLOOR, _MAX, _SUM = (
    f"llvm.{name}.v{LANES}f32"
    for name in ("fma", "floor", "vector.reduce.fmax", "vector.reduce.fadd")
)
_SPLITS = IS_LONG and can("avx512dq")  # a number into a whole one and the rest of it
_FLOOR_ONLY = 9  # the whole number below, and no exceptions
FEW_POWERS = 0.0780246727, 0.226067014, 0.695833548, 0.999925214  # of degree 3, to within 8e-5
_LEAST = -3.4028235e38  # of float32


def _all(kind: Any, number: Any) -> Any:
    return ir.Constant(kind, LANES * [number])


def _masked(builder: Any, name: str, x: Any, more: Any) -> Any:
    """One of the instructions that LLVM has with a mask and a rounding alone; all lanes."""
    few, near = ir.IntType(LANES), WORD(4)
    name = f"llvm.x86.avx512.mask.{name}.{8 * _BYTES * LANES}"
    return call(builder, name, x, x, more, x, few((1 << LANES) - 1), near)


def _larger(builder: Any, one: Any, other: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", one, other), one, other)


def exp2(builder: Any, x: Any, powers: Any = EXP2) -> Any:
    """As `arithmetic.exp2`; 0 for what is less, where an instruction knows."""
    if _SPLITS:
        f = _masked(builder, "reduce.ps", x, WORD(_FLOOR_ONLY))
    else:
        x = _larger(builder, x, _all(FLOATS, LEAST_EXPONENT))
        floor = call(builder, _FLOOR, x, x)
        f = builder.fsub(x, floor)
    p = _all(FLOATS, powers[0])
    for number in powers[1:]:
        p = call(builder, _FMA, p, p, f, _all(FLOATS, number))
    if _SPLITS:
        return _masked(builder, "scalef.ps", p, x)
    exponent = builder.shl(builder.fptosi(floor, WORDS), _all(WORDS, 23))
    return builder.bitcast(builder.add(builder.bitcast(p, WORDS), exponent), FLOATS)


class _Row:
    """Code that goes over a row of scores and one of weights."""

    def __init__(self, builder: Any, like: Any, scores: Any, weights: Any, factor: Any) -> None:
        self._builder, self._like = builder, like
        self._scores, self._weights, self._factor = scores, weights, factor
        # A bfloat16 is rounded by up to 4e-3.
        self._powers = EXP2 if isinstance(like, types.Float) else FEW_POWERS
        self.top = cgutils.alloca_once_value(builder, _all(FLOATS, _LEAST))
        self.total = cgutils.alloca_once_value(builder, _all(FLOATS, 0.0))

    def _scores_at(self, index: Any) -> Any:
        at = self._builder.mul(index, LONGS(LANES * _BYTES))
        return self._builder.load(pointer(self._builder, self._scores, at, FLOATS), align=_BYTES)

    def find_top(self, index: Any, seen: Any) -> None:
        """The largest scores of each lane."""
        builder, scores = self._builder, self._scores_at(index)
        scores = builder.select(seen, scores, _all(FLOATS, _LEAST)) if seen else scores
        builder.store(_larger(builder, scores, builder.load(self.top)), self.top)

    def take_off(self) -> Any:
        """What is taken off exponents from here on; the same of a lane."""
        top = self.reduced(_MAX, self._builder.load(self.top))
        base = self._builder.fmul(top, self._builder.extract_element(self._factor, WORD(0)))
        self._builder.store(spread(self._builder, self._builder.fneg(base), FLOATS), self.top)
        return base

    def weigh(self, index: Any, seen: Any) -> None:
        """Weights of scores, and their sum in each lane."""
        builder, scores = self._builder, self._scores_at(index)
        below = builder.load(self.top)
        x = call(builder, _FMA, scores, scores, self._factor, below)
        exp = exp2(builder, x, self._powers)
        exp = builder.select(seen, exp, _all(FLOATS, 0.0)) if seen else exp
        builder.store(builder.fadd(builder.load(self.total), exp), self.total)
        store_floats(builder, self._like, self._weights, index, exp)

    def sum(self) -> Any:
        """Of all lanes' weights."""
        return self.reduced(_SUM, self._builder.load(self.total), _FLOAT(0.0))

    def reduced(self, name: str, vector: Any, *start: Any) -> Any:
        """A number of all lanes."""
        kind = ir.FunctionType(_FLOAT, [*(one.type for one in start), FLOATS])
        function = cgutils.get_or_insert_function(self._builder.module, kind, name)
        return self._builder.call(function, [*start, vector], fastmath=("reassoc",))


def _each(builder: Any, visits: list[Any], seen: list[Any], n_vectors: Any) -> None:
    """Visits all vectors of rows: where they are, which lanes the row sees (None: all)."""
    least = seen[0]
    for other in seen[1:]:
        least = builder.select(builder.icmp_signed("<", other, least), other, least)
    whole = builder.udiv(least, LONGS(LANES))
    with cgutils.for_range(builder, whole) as loop:
        for visit in visits:
            visit(loop.index, None)
    with cgutils.for_range(builder, n_vectors, start=whole) as loop:
        first = builder.mul(loop.index, LONGS(LANES))
        lanes = ir.Constant(WORDS, list(range(LANES)))
        for visit, n in zip(visits, seen, strict=True):
            left = spread(builder, builder.trunc(builder.sub(n, first), WORD), WORDS)
            visit(loop.index, builder.icmp_signed("<", lanes, left))


@intrinsic
def exponentials(_context: Any, like: Any, places: Any, seen: Any, factor: Any) -> Any:
    """Weights 2^(factor (score - the largest)) of those scores that are seen, 0 for the others.

    Rows are gone over together, so that none waits for what another one has to find.

    Args:
        like: A weight: float32, or a bfloat16 as its bits.
        places: Addresses of scores and of weights, each with the bytes from row to row, and how
            many of a row there are.
        seen: How many of them each row sees.
        factor: Positive.

    Returns:
        The sums of the weights, and what is taken off the exponents.
    """
    count = len(seen)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, to_scores, weights, to_weights, n = cgutils.unpack_tuple(builder, arguments[1])
        seen = cgutils.unpack_tuple(builder, arguments[2])
        factor = spread(builder, arguments[3], FLOATS)
        rows = [
            _Row(
                builder,
                like,
                builder.add(scores, builder.mul(to_scores, LONGS(r))),
                builder.add(weights, builder.mul(to_weights, LONGS(r))),
                factor,
            )
            for r in range(count)
        ]
        vectors = builder.udiv(n, LONGS(LANES))
        _each(builder, [row.find_top for row in rows], seen, vectors)
        bases = [row.take_off() for row in rows]
        _each(builder, [row.weigh for row in rows], seen, vectors)
        totals = [row.sum() for row in rows]
        both = (
            context.make_tuple(builder, part, numbers)
            for part, numbers in zip(signature.return_type, (totals, bases), strict=True)
        )
        return context.make_tuple(builder, signature.return_type, both)

    numbers = types.UniTuple(types.float32, count)
    return types.UniTuple(numbers, 2)(like, places, seen, factor), code
