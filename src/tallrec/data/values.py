"""The values of a table become ids, ratings, times and titles; each is checked on the way.

What is wrong is named with its file, row and column, and with what would be right.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from tallrec.types import Dataset

if TYPE_CHECKING:
    from tallrec.data.reading import Table

_NO_TIME = pl.lit(None, pl.Int64)
_DATES = (
    "%Y-%m-%d",
    *(
        f"%Y-%m-%d{between}%H:%M{seconds}{zone}"
        for between in "T "
        for seconds in (":%S%.f", "")
        for zone in ("", "%#z")
    ),
)


def read_interactions(table: Table, at: Mapping[str, str]) -> pl.DataFrame:
    """Reads and checks the interactions of a table.

    Args:
        table: One row an interaction.
        at: Position of the columns `user`, `item` and `rating`, and of `timestamp`, `title` and
            `creator` where the table has them.

    Returns:
        `user` and `item` (Categorical), `rating` (Float32), `timestamp` (Int64, null where
        unknown), `blank` (Boolean, an empty record to be skipped) and, where they are in `at`,
        `title` and `creator` (Categorical); one row for each record of the file.

    Raises:
        ValueError: At the first value that is missing or wrong.
    """
    texts = [role for role in ("user", "item", "title", "creator") if role in at]
    frame = table.collect(
        {role: pl.col(at[role]).cast(pl.String).cast(pl.Categorical) for role in texts}
        | {
            "rating": _bare(at["rating"]).cast(pl.Float32, strict=False),
            "timestamp": _seconds(table, at["timestamp"]) if "timestamp" in at else _NO_TIME,
            "blank": pl.all_horizontal(pl.col(list(at.values())).is_null()),
        }
    )
    used = _used(table, frame)
    for role in ("user", "item"):
        _refuse(table, at[role], _empty(frame[role]) & used, "", f"every row needs its {role}'s id")
    wrong = ~frame["rating"].is_finite().fill_null(value=False)
    _refuse(
        table, at["rating"], wrong & used, "is not a finite number", "ratings look like 4 or 3.5"
    )
    if "timestamp" in at and (first := table.first_value(at["timestamp"])) is not None:
        problem = f"is no time, or not written like the first one, {first!r}"
        right = "times are seconds since 1970 or dates such as 2024-05-31T12:30:00; all or none"
        _refuse(table, at["timestamp"], frame["timestamp"].is_null() & used, problem, right)
    return frame


def check_known(
    table: Table,
    at: Mapping[str, str],
    interactions: pl.DataFrame,
    catalog: pl.DataFrame,
    titles: Path,
) -> None:
    """Refuses interactions with items that are not in the catalogue, which came from `titles`."""
    items = interactions["item"].unique().drop_nulls().cast(pl.String)
    unknown = items.filter(~items.is_in(catalog["item"].implode()))
    problem = f"has no title in {titles}"
    right = "add the item there or leave its interactions out"
    _refuse(table, at["item"], _any_of(interactions["item"], unknown), problem, right)


def read_catalog(table: Table, at: Mapping[str, str]) -> pl.DataFrame:
    """Reads and checks the items of a table with one row an item.

    Args:
        table: One row an item.
        at: Position of the columns `item` and `title`, and of `creator` where the table has it.

    Returns:
        `item`, `title` and `creator` (String), as in `Dataset.catalog`.

    Raises:
        ValueError: If an id or a title is missing or an id occurs twice.
    """
    frame = table.collect({role: pl.col(position).cast(pl.String) for role, position in at.items()})
    frame = frame.with_columns(blank=pl.all_horizontal(pl.all().is_null()))
    used = _used(table, frame)
    _refuse(table, at["item"], _empty(frame["item"]) & used, "", "every row needs its item's id")
    again = ~frame["item"].is_first_distinct() & used
    if again.any():
        same = frame["item"] == frame["item"].filter(again)[0]
        problem = f"is the id of row {table.row_of(_first(same))} too"
        _refuse(table, at["item"], again, problem, "ids are unique: keep one row for each item")
    untitled = _empty(frame["title"].str.strip_chars()) & used
    _refuse(table, at["title"], untitled, "", "every item needs a title")
    creator = _filled("creator") if "creator" in at else pl.lit(None, pl.String).alias("creator")
    return frame.filter(used).select("item", "title", creator)


def to_dataset(
    name: str,
    domain: str,
    interactions: pl.DataFrame,
    catalog: pl.DataFrame,
    *,
    like_above: float = 3.0,
    unrated: float | None = None,
) -> Dataset:
    """Gives checked interactions the types of a `Dataset`, whose attributes the others are."""
    if interactions["blank"].any():
        interactions = interactions.filter(~pl.col("blank"))
    users = interactions["user"].unique(maintain_order=True).cast(pl.String)
    ids = {"user": pl.Enum(users), "item": pl.Enum(catalog["item"])}
    typed = interactions.lazy().select(
        # by way of text, which Polars turns into an Enum faster than a Categorical
        *(pl.col(role).cast(pl.String).cast(enum) for role, enum in ids.items()),
        "rating",
        "timestamp",
    )
    rows = typed.collect(engine="streaming").rechunk()
    return Dataset(name, domain, rows, catalog, like_above, unrated)


def first_titles(table: Table, at: Mapping[str, str], interactions: pl.DataFrame) -> pl.DataFrame:
    """The catalogue of interactions that come with titles: each item's first title counts.

    Args:
        table: The table that was read.
        at: Position of its columns, `title` included.
        interactions: What `read_interactions` made of it.

    Returns:
        `item`, `title` and `creator` (String), as in `Dataset.catalog`.

    Raises:
        ValueError: If an item has no title.
    """
    roles = [role for role in ("title", "creator") if role in at]
    rows = interactions.lazy().filter(~pl.col("blank")).select("item", *roles)
    catalog = titles_in(rows, roles).collect(engine="streaming")
    untitled = catalog.filter(pl.col("title").is_null())["item"]
    right = "every item needs a title in one of its rows"
    _refuse(table, at["title"], _any_of(interactions["item"], untitled), "", right)
    several = catalog.filter(pl.col("titles") > 1)["item"]
    if len(several):
        warnings.warn(
            f"{table.path}: {len(several):,} items have several titles, for example item "
            f"{several[0]!r}; the first of each is used",
            stacklevel=3,
        )
    if "creator" not in at:
        catalog = catalog.with_columns(creator=pl.lit(None, pl.String))
    return catalog.select("item", "title", "creator")


def titles_in(rows: pl.LazyFrame, roles: Sequence[str]) -> pl.LazyFrame:
    """Each item's first title and creator, as far as `roles` names them, and how many titles."""
    return (
        rows.unique(maintain_order=True)
        .cast(pl.String)
        .select("item", *(_filled(role) for role in roles))
        .group_by("item", maintain_order=True)
        .agg(
            *(pl.col(role).drop_nulls().first() for role in roles),
            titles=pl.col("title").drop_nulls().n_unique(),
        )
    )


def _seconds(table: Table, position: str) -> pl.Expr:
    """Reads a column as whole seconds since 1970, null where that fails."""
    if isinstance(table.frame.collect_schema()[position], pl.Date | pl.Datetime):
        return pl.col(position).dt.epoch("s")
    first = pl.Series([str(table.first_value(position)).strip()])
    for date in _DATES:
        if first.str.to_datetime(date, strict=False).null_count() == 0:
            return _bare(position).str.to_datetime(date, time_unit="us", strict=False).dt.epoch("s")
    return _bare(position).cast(pl.Float64, strict=False).floor().cast(pl.Int64, strict=False)


def _first(true: pl.Series) -> int:
    index = true.arg_max()
    assert index is not None
    return index


def _used(table: Table, frame: pl.DataFrame) -> pl.Series:
    if frame["blank"].all():
        raise ValueError(f"{table.path} has only blank rows")
    return ~frame["blank"]


def _empty(ids: pl.Series) -> pl.Series:
    return (ids == "").fill_null(value=True)


def _any_of(ids: pl.Series, some: pl.Series) -> pl.Series:
    """True where an id is one of `some`, shape [n]; instant if there are none of them."""
    if some.is_empty():
        return pl.Series([False])
    return ids.cast(pl.String).is_in(some.implode()).fill_null(value=False)


def _bare(position: str) -> pl.Expr:
    return pl.col(position).cast(pl.String).str.strip_chars()


def _filled(role: str) -> pl.Expr:
    """The column with null for every text that shows nothing."""
    return pl.when(pl.col(role).str.strip_chars() != "").then(pl.col(role)).alias(role)


def _refuse(table: Table, position: str, bad: pl.Series, problem: str, right: str) -> None:
    """Raises for the first record that is bad, if any is.

    Args:
        table: The file.
        position: The column at fault.
        bad: True for each bad record, shape [n].
        problem: What is wrong with a value, to follow it; an empty value needs no more words.
        right: What would be right.
    """
    if not bad.any():
        return
    record = _first(bad)
    value = table.value(position, record)
    empty = value is None or not str(value).strip()
    fault = "nothing is there" if empty else f"{value!r} {problem}"
    count = int(bad.sum())
    raise ValueError(
        f"{table.path}, row {table.row_of(record)}, column {table.names[int(position) - 1]!r}: "
        f"{fault}; {right}" + (f" ({count:,} rows like this)" if count > 1 else "")
    )
