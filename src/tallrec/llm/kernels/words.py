"""Numbers as the words that products of tiles read, and loops that are run with a kind of them.

A float32 is a word, in bfloat16 two numbers are; see `tallrec.llm.kernels.tiles`.
"""

from __future__ import annotations

from typing import Any

from numba import njit, types
from numba.extending import overload

from tallrec.llm.kernels.arithmetic import narrow, wide
from tallrec.llm.kernels.native import (
    BITS,
    FLOAT,
    LOOP,
    UINT,
    by_float32,
    by_longest_vectors,
    numbers,
)


def word_of(one: Any, other: Any, like: Any) -> Any:
    """A word of two numbers in bfloat16; where words are float32, the first."""
    raise NotImplementedError


@overload(word_of)
def _word_of(one: Any, other: Any, like: Any) -> Any:  # noqa: ARG001 - its type tells
    def first(one: Any, other: Any, like: Any) -> Any:  # noqa: ARG001
        return wide(one)

    def pair(one: Any, other: Any, like: Any) -> Any:  # noqa: ARG001
        return UINT(UINT(one) | UINT(UINT(other) << UINT(16)))

    return first if isinstance(like, types.Float) else pair


def per_word(like: Any) -> Any:
    """Of how many numbers a word is."""
    raise NotImplementedError


@overload(per_word)
def _per_word(like: Any) -> Any:
    number = 1 if isinstance(like, types.Float) else 2

    def per(like: Any) -> Any:  # noqa: ARG001
        return number

    return per


@njit(**LOOP)
def as_row(out: Any, one: Any, other: Any) -> None:
    """A row of words of B from two rows of numbers."""
    for j in range(len(one)):
        out[j] = word_of(one[j], other[j], out[j])


@njit(**LOOP)
def as_column(out: Any, column: Any, one: Any, other: Any) -> None:
    """A column of words of A from two rows of numbers."""
    for j in range(len(one)):
        out[j, column] = word_of(one[j], other[j], out[j, column])


@njit(**LOOP)
def as_rows(out: Any, first: Any, x: Any, n: Any, like: Any) -> None:
    """The first n words of rows of B, from a row on, from rows of float32."""
    per = per_word(out[0, 0])
    for t in range(len(x) // per):
        out_j, one, other = out[first // per + t], x[t * per], x[t * per + per - 1]
        for j in range(n):
            first_of, other_of = narrow(one[j], like[0]), narrow(other[j], like[0])
            out_j[j] = word_of(first_of, other_of, out_j[j])


@njit(**LOOP)
def by_words(loop: Any, job: Any) -> None:
    """Runs a loop of a job's numbers, their dtype, that of numbers in words, and that of words."""
    by_longest_vectors()  # type: ignore[call-arg]
    dtype, word = by_float32(job, FLOAT, BITS), by_float32(job, FLOAT, UINT)
    loop(numbers(job), dtype, dtype, word)


@njit(**LOOP)
def by_floats(loop: Any, job: Any) -> None:
    """The same in words of float32."""
    by_longest_vectors()  # type: ignore[call-arg]
    loop(numbers(job), by_float32(job, FLOAT, BITS), FLOAT, FLOAT)
