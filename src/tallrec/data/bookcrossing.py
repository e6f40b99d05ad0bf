r"""Book-Crossing: 1.15 million ratings of 271,000 books, as its authors publish them.

Ziegler, McNee, Konstan and Lausen, "Improving Recommendation Lists Through Topic
Diversification", WWW 2005, https://doi.org/10.1145/1060745.1060754. The data may be used for
research and not be passed on.

The dump has one record a line, fields in double quotes, a quote inside a field as `\"`. Some lines
are broken. Each is read on its own, so that a stray quote costs one line and never the ones after
it; what is left out is counted, with its reason and its rows, in a warning.
"""

from __future__ import annotations

import csv
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from tallrec.data.reading import open_table
from tallrec.data.sources import source_files
from tallrec.data.text import UNIT
from tallrec.data.values import to_dataset

if TYPE_CHECKING:
    from tallrec.types import Dataset

_RATINGS = {"User-ID": "user", "ISBN": "item", "Book-Rating": "rating"}
_BOOKS = {"ISBN": "item", "Book-Title": "title", "Book-Author": "creator"}
_ROWS_SHOWN = 3  # of each kind of fault
_LOST_BYTES = {  # see `_with_lost_bytes`
    "Ã\\?Â(?=[\xa0-\xff])": "Ã\x83Â",
    "Ã\x83\\?Ã\x82(?=Â[\xa0-\xff])": "Ã\x83Â\x83Ã\x82",  # the same, decoded wrongly once more
    "Ã\x83?\\?(?:Ã\x82|Â)\\?": "\ufffd",  # `ß` and capitals: their second letter is lost as well
}


@dataclass(frozen=True)
class _Layout:
    """How a publisher wrote the data set.

    Attributes:
        separator: What stands between fields.
        encoding: Encoding of both files.
        escapes: Whether a backslash in a quoted field makes the next character a plain one.
    """

    separator: str
    encoding: str
    escapes: bool

    @property
    def field(self) -> str:
        """A regular expression, without groups, of a field with or without quotes around it."""
        inner = r'(?:[^"\\]|\\.|"")*' if self.escapes else '(?:[^"]|"")*'
        return f'(?:"{inner}"|[^"{self.separator}]*)'


_LAYOUTS = {
    ("BX-Book-Ratings.csv", "BX-Books.csv"): _Layout(";", "latin-1", escapes=True),
    ("BX-Ratings.csv", "BX-Books.csv"): _Layout(",", "utf-8", escapes=False),
}


def read_book_crossing(source: Path) -> Dataset:
    """Reads ratings from 0 to 10 in the order of their file; 0 says that a book was not rated.

    Left out, with a warning that counts them, are lines that cannot be read, books without a
    title, all rows but the first of an ISBN or of a user and a book, and ratings of books that
    `BX-Books.csv` does not have. Titles and authors are repaired: entities (`&amp;`), and text
    that was decoded wrongly, once or twice (`ClÃ©zio`).

    Args:
        source: The folder or zip file of the dump (`BX-Book-Ratings.csv`, `BX-Books.csv`: columns
            with semicolons between them, Latin-1), or of a table with commas in UTF-8
            (`BX-Ratings.csv`, `BX-Books.csv`).

    Returns:
        The data set, without times; a like is a rating above 5, as in TALLRec's book data.

    Raises:
        ValueError: If the files are not there, have other columns or no usable rows.
    """
    with source_files(source, _LAYOUTS, "Book-Crossing") as (ratings, books):
        layout = _LAYOUTS[ratings.name, books.name]
        catalog = _read_books(books, layout)
        interactions = _read_ratings(ratings, layout, catalog)
    return to_dataset("book-crossing", "book", interactions, catalog, like_above=5.0, unrated=0.0)


def _read_books(path: Path, layout: _Layout) -> pl.DataFrame:
    """The catalogue: `item`, `title` and `creator`, see `Dataset`."""
    books = _read_records(path, layout, _BOOKS)
    bare = pl.all_horizontal(pl.col("item", "title").str.strip_chars() != "")
    books = _with_fault(books, ~bare, "without an ISBN or a title")
    books = _with_fault(books, _again("item"), "with the ISBN of an earlier row")
    books = _without_faults(path, books)
    return books.select(
        "item",
        _repaired(books["title"]),
        _repaired(books["creator"].str.strip_chars().replace("", None)),
    )


def _read_ratings(path: Path, layout: _Layout, catalog: pl.DataFrame) -> pl.DataFrame:
    """The interactions as `to_dataset` takes them."""
    ratings = _read_records(path, layout, _RATINGS).with_columns(
        pl.col("rating").str.strip_chars().cast(pl.Float32, strict=False)
    )
    bare = pl.all_horizontal(pl.col("user", "item").str.strip_chars() != "")
    ratings = _with_fault(ratings, ~bare, "without a user or an ISBN")
    scale = pl.col("rating").is_between(0, 10).fill_null(value=False)
    ratings = _with_fault(ratings, ~scale, "without a rating from 0 to 10")
    known = pl.col("item").is_in(catalog["item"].implode())
    ratings = _with_fault(ratings, ~known, "of books that BX-Books.csv does not have")
    ratings = _with_fault(
        ratings, _again("user", "item"), "with the user and the book of an earlier row"
    )
    ratings = _without_faults(path, ratings)
    return ratings.select(
        "user", "item", "rating", timestamp=pl.lit(None, pl.Int64), blank=pl.lit(value=False)
    )


def _read_records(path: Path, layout: _Layout, columns: dict[str, str]) -> pl.DataFrame:
    """Reads the first columns of each line.

    Args:
        path: The file; its first row names its columns.
        layout: How it is written.
        columns: The first columns of the file, and what they are called in the result.

    Returns:
        `row` (from 1, as an editor counts), `fault` (null where a line can be read) and the
        columns (String); blank lines are skipped.

    Raises:
        ValueError: If the first columns are others or there are no rows.
    """
    with open_table(
        path, separator=UNIT, header=True, encoding=layout.encoding, quoting=False
    ) as lines:
        names = next(csv.reader(lines.names, delimiter=layout.separator))
        if names[: len(columns)] != list(columns):
            raise ValueError(
                f"{path}, row 1: the first columns must be {', '.join(columns)}, with "
                f"{layout.separator!r} between them; they are {', '.join(names[: len(columns)])}"
            )
        field, between = layout.field, re.escape(layout.separator)
        wanted = between.join([f"({field})"] * len(columns))
        others = f"(?:{between}{field}){{{len(names) - len(columns)}}}"
        lines_read = lines.collect(
            {
                "row": pl.int_range(2, pl.len() + 2),
                "quoted_well": pl.col("1").str.contains(f"^{field}(?:{between}{field})*$"),
                "fields": pl.col("1").str.extract_groups(f"^{wanted}{others}$"),
            }
        )
    fields = lines_read["fields"].struct.rename_fields(list(columns.values())).struct.unnest()
    fault = (
        pl.when(~pl.col("quoted_well"))
        .then(pl.lit("with quotes out of place"))
        .when(pl.col("item").is_null())
        .then(pl.lit(f"with more or fewer than {len(names)} fields"))
    )
    read = pl.concat([lines_read.drop("fields"), fields], how="horizontal")
    return (
        read.filter(pl.col("quoted_well").is_not_null())
        .with_columns(_unquoted(name, layout) for name in columns.values())
        .select("row", *columns.values(), fault=fault)
    )


def _unquoted(name: str, layout: _Layout) -> pl.Expr:
    """The text of a field; that of a bare NULL, the database's word for nothing, is empty."""
    raw = pl.col(name)
    text = raw.str.strip_prefix('"').str.strip_suffix('"').str.replace_all('""', '"')
    if layout.escapes:
        text = text.str.replace_all(r"\\(.)", "$1")
    return pl.when(raw == "NULL").then(pl.lit("")).otherwise(text).alias(name)


def _with_fault(rows: pl.DataFrame, at_fault: pl.Expr, fault: str) -> pl.DataFrame:
    """Names a fault of rows that have none so far."""
    new = pl.col("fault").is_null() & at_fault
    return rows.with_columns(fault=pl.when(new).then(pl.lit(fault)).otherwise("fault"))


def _again(*names: str) -> pl.Expr:
    """True where an earlier row without a fault has the same values."""
    return ~pl.struct(pl.col("fault").is_null(), *names).is_first_distinct()


def _without_faults(path: Path, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows without a fault; a warning counts the others by reason."""
    faults = (
        rows.filter(pl.col("fault").is_not_null())
        .group_by("fault", maintain_order=True)
        .agg(pl.len(), pl.col("row").head(_ROWS_SHOWN))
    )
    if faults.is_empty():
        return rows
    left_out = int(faults["len"].sum())
    reasons = "; ".join(
        f"{count:,} {fault} (row {', '.join(map(str, first))}{', ...' * (count > len(first))})"
        for fault, count, first in faults.iter_rows()
    )
    if left_out == rows.height:
        raise ValueError(f"{path}: none of its {left_out:,} rows can be used: {reasons}")
    warnings.warn(
        f"{path.name}: {left_out:,} of {rows.height:,} rows are left out: {reasons}", stacklevel=4
    )
    return rows.filter(pl.col("fault").is_null())


def _repaired(texts: pl.Series) -> pl.Series:
    """Texts without entities and encoding damage; the plain ones, nearly all, are not looked at."""
    from ftfy import TextFixerConfig, fix_text

    config = TextFixerConfig(unescape_html=True, uncurl_quotes=False)
    suspicious = texts.filter(texts.str.contains("[^ -~]|&")).unique()
    repaired = [fix_text(_with_lost_bytes(text), config) for text in suspicious]
    return texts.replace(suspicious, pl.Series(repaired, dtype=pl.String))


def _with_lost_bytes(text: str) -> str:
    """Puts a byte back in letters that were decoded twice as Latin-1.

    Of the four characters into which that turns `ä`, the second is a control character; the dump
    has a question mark in its place: `SÃ?Â¤ulen`. ftfy knows what to do once it is back. Where
    the fourth is lost as well, U+FFFD stands for the letter.
    """
    for damaged, better in _LOST_BYTES.items():
        text = re.sub(damaged, better, text)
    return text
