"""Rows that cannot be worked on are set aside with the reason; the others go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import polars as pl

T = TypeVar("T")


class TooManyBadRowsError(ValueError):
    """So many rows are refused that it is not the rows' fault."""


def sift(
    rows: pl.DataFrame, work: Callable[[pl.DataFrame], T], *, most: int
) -> tuple[list[T], pl.DataFrame]:
    """Works on rows; where that is refused, on halves of them, down to the row at fault.

    Args:
        rows: What to work on.
        work: Raises `ValueError` where a row is not right.
        most: More bad rows than this are taken for another mistake.

    Returns:
        What `work` made of the rows that went through, part by part in order; and the rows set
        aside, with a column `reason`.

    Raises:
        TooManyBadRowsError: If more than `most` rows are refused.
    """
    good: list[T] = []
    bad: list[pl.DataFrame] = []
    left = [rows] if rows.height else []
    while left:
        part = left.pop()
        try:
            good.append(work(part))
        except ValueError as error:
            if part.height > 1:
                half = part.height // 2
                left += [part[half:], part[:half]]
                continue
            bad.append(with_reason(part, str(error)))
            if len(bad) > most:
                raise TooManyBadRowsError(
                    f"more than {most} rows of one bucket are refused, the last because: {error}"
                ) from None
    return good, pl.concat(bad) if bad else with_reason(rows.clear(), "")


def with_reason(rows: pl.DataFrame, reason: str) -> pl.DataFrame:
    """Rows and why they are set aside."""
    return rows.with_columns(reason=pl.lit(reason, pl.String))
