"""A job in a store: what it is about, what is done of it, and the phases it goes through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from tallrec.progress import shown
from tallrec.scale.buckets import folder_of, pieces_of, scatter
from tallrec.scale.storage import Store
from tallrec.scale.workers import Workers

if TYPE_CHECKING:
    import polars as pl

R = TypeVar("R")
S = TypeVar("S")

_ABOUT = "job.json"
SCATTERED = "scattered"
"""The folder of rows in buckets, while a job is under way."""
SET_ASIDE = "set-aside"
"""The folder of rows that could not be worked on, with the reason."""
DONE = "done"
"""The folder that says which buckets are whole."""


@dataclass(frozen=True)
class Tally:
    """What came of a job.

    Attributes:
        rows: Rows written.
        set_aside: Rows that could not be worked on; they are in the folder `set-aside`.
    """

    rows: int
    set_aside: int


def begin(out: Store, facts: Mapping[str, Any]) -> None:
    """Begins a job or goes on with it.

    Args:
        out: Its folder.
        facts: What the job is about.

    Raises:
        ValueError: If the folder holds something else.
    """
    known = out.facts(_ABOUT)
    if known is None:
        if out.names():
            raise ValueError(f"{out.url} holds other files: give another --out")
        out.put_facts(_ABOUT, dict(facts))
        return
    for name in sorted({*known, *facts}):
        if known.get(name) != facts.get(name):
            raise ValueError(f"{out.url} was begun with another {name}: give another --out")


def scatter_all(
    workers: Workers[Any],
    files: Mapping[str, str],
    read: Callable[[pl.LazyFrame], pl.LazyFrame],
    out: Store,
    buckets: int,
) -> None:
    """Sorts the rows of all files into buckets; see `scatter`."""
    folder = out / SCATTERED
    done = (folder / DONE).names()
    jobs = {
        piece.number: partial(scatter, piece=piece, read=read, out=folder, buckets=buckets)
        for piece in pieces_of(files)
        if piece.name not in done
    }
    work_off(workers, jobs, "Into buckets", out)


def work_off(
    workers: Workers[S], jobs: Mapping[int, Callable[[S], R]], title: str, out: Store
) -> dict[int, R]:
    """Does all jobs; those that fail are told of when the others are done.

    Returns:
        What came of each job, in order.

    Raises:
        ValueError: If one fails.
    """
    failures: dict[int, str] = {}
    results: dict[int, R] = {}
    with shown(title) as on_progress:
        for number, (job, outcome) in enumerate(workers.run(jobs), start=1):
            if outcome.failure is not None:
                failures[job] = outcome.failure
            else:
                results[job] = outcome.result
            on_progress(number, len(jobs), f"({len(failures)} failed)" if failures else "")
    if failures:
        first = min(failures)
        raise ValueError(
            f"{len(failures)} of {len(jobs)} parts failed, the first of them ({first}): "
            f"{failures[first]}; what is done is kept in {out.url}, and the same command goes on"
        )
    return dict(sorted(results.items()))


def missing_in(folder: Store, buckets: int) -> list[int]:
    """The buckets that are not finished yet."""
    done = (folder / DONE).names()
    return [bucket for bucket in range(buckets) if f"{folder_of(bucket)}.json" not in done]


def finish(out: Store) -> Tally:
    """Removes what only the work needed, and counts."""
    (out / SCATTERED).remove()
    done = out / DONE
    facts = [done.facts(name) or {} for name in done.names()]
    tally = Tally(sum(f["rows"] for f in facts), sum(f["set_aside"] for f in facts))
    out.put_facts("finished.json", {"rows": tally.rows, "set_aside": tally.set_aside})
    return tally
