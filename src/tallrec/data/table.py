"""Your own interactions, from tables with any columns, as a `Dataset`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tallrec.data.reading import Table, open_table
from tallrec.data.values import (
    check_known,
    first_titles,
    read_catalog,
    read_interactions,
    to_dataset,
)

if TYPE_CHECKING:
    from tallrec.types import Dataset

GUESSES = {
    "user": ("user", "user_id"),
    "item": ("item", "item_id"),
    "rating": ("rating",),
    "timestamp": ("timestamp",),
    "title": ("title",),
    "creator": ("creator",),
}

REQUIRED = ("user", "item", "rating", "title")


def read_table(
    ratings: Path,
    *,
    columns: Mapping[str, str] | None = None,
    items: Path | None = None,
    items_id: str | None = None,
    separator: str | None = None,
    header: bool = True,
    encoding: str = "utf-8",
    quoting: bool = True,
    domain: str = "item",
    name: str | None = None,
) -> Dataset:
    r"""Reads interactions and the titles of their items from one table or two.

    Files are text (`.csv`, `.tsv`, `.txt`, `.dat`, with `.gz` or without), JSON lines (`.jsonl`,
    `.ndjson`) or Parquet. Ids are compared as text, exactly. Rows keep their order; rows that are
    empty in every column used are skipped.

    Timestamps are seconds since 1970 or ISO 8601 dates with or without a time (UTC unless they
    say otherwise), all in the format of the first. Either every row has one or none has.

    If titles come with the interactions, the first title of an item counts, and a warning tells of
    items with several.

    Args:
        ratings: One row an interaction.
        columns: The file's column for each of `user`, `item`, `rating`, `timestamp`, `title` and
            `creator`: its name or, without a header, its number from 1. A role left out takes the
            column called exactly so (`user_id` and `item_id` count too), if there is one; an empty
            string takes none. Users, items, ratings and titles are required.
        items: A second file with one row an item, which then has the titles and creators.
        items_id: The column of item ids in `items`, if it is called otherwise than in `ratings`.
        separator: What stands between columns of text files, one character or several; `\t` may
            be written out.
        header: Whether the first row of text files names their columns.
        encoding: Encoding of text files and JSON lines.
        quoting: Whether double quotes enclose fields of text files, as they do in CSV.
        domain: What an item is called in a prompt.
        name: A short name for reports; the file's name unless given.

    Returns:
        The interactions, and every item of `items` or, without it, of the interactions.

    Raises:
        ValueError: If a file, a column or a value is missing or wrong.
    """
    columns = dict(columns or {})
    if unknown := sorted(columns.keys() - GUESSES.keys()):
        raise ValueError(f"columns can be given for {', '.join(GUESSES)}; got {unknown}")
    if items_id and not items:
        raise ValueError("--items-id names a column of a second file; give that file as --items")
    with ExitStack() as files:

        def opened(path: Path) -> Table:
            return files.enter_context(
                open_table(
                    path, separator=separator, header=header, encoding=encoding, quoting=quoting
                )
            )

        table = opened(ratings)
        if items:
            at = find_columns(table, columns, ("user", "item", "rating", "timestamp"))
            item_table = opened(items)
            ids = {"item": items_id} if items_id else {}
            item_at = find_columns(
                item_table, columns | ids, ("item", "title", "creator"), {"item": "--items-id"}
            )
            catalog = read_catalog(item_table, item_at)
            interactions = read_interactions(table, at)
            check_known(table, at, interactions, catalog, items)
        else:
            options = {"title": "--title, or a second file as --items"}
            at = find_columns(table, columns, tuple(GUESSES), options)
            interactions = read_interactions(table, at)
            catalog = first_titles(table, at, interactions)
    return to_dataset(name or ratings.name.split(".")[0], domain, interactions, catalog)


def find_columns(
    table: Table,
    columns: Mapping[str, str],
    roles: tuple[str, ...],
    options: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The position in `table` of the column for each role that has one.

    Args:
        table: An open file.
        columns: Role to column, see `read_table`.
        roles: The roles to look for.
        options: How messages say to give a role's column, where that is not `--role`.

    Raises:
        ValueError: If a column does not exist or a required role has none.
    """
    at = {}
    for role in roles:
        option = (options or {}).get(role, f"--{role}")
        name = columns.get(role)
        if name is None:
            name = next((guess for guess in GUESSES[role] if guess in table.names), "")
        if name:
            at[role] = table.position(name, option)
        elif role in REQUIRED:
            raise ValueError(
                f"{table.path}: which column holds the {role}s? Give {option}; {table.columns()}"
            )
    return at
