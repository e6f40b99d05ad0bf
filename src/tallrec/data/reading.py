"""Files of records, text, JSON lines or Parquet, each opened as one lazy table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from tallrec.data.text import (
    UNIT,
    Delimited,
    decoding,
    first_row,
    likely_separator,
    plain_text,
)

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": None, ".dat": None}
KINDS = "text (.csv, .tsv, .txt, .dat), JSON lines (.jsonl, .ndjson) or Parquet (.parquet)"

_PEEK = 100  # JSON lines whose keys are taken for the columns


@dataclass(frozen=True)
class Table:
    """An open file of records.

    Attributes:
        path: The file, as messages name it.
        names: Its columns' names, or "1", "2", ... where it has no header.
        frame: Its records, with columns called "1", "2", ... by position.
        row_of: Row in the file, from 1, of a record, from 0: in text the line that an editor
            shows, in Parquet the record's own number.
        first_fault: Where and why a record cannot be read, if that can be told.
    """

    path: Path
    names: list[str]
    frame: pl.LazyFrame
    row_of: Callable[[int], int]
    first_fault: Callable[[], ValueError | None]

    def position(self, name: str, option: str) -> str:
        """The column of `frame` for a column of the file.

        Args:
            name: The column's name, or its number where the file has no header.
            option: Who asks for it, such as `--user`, for the message.

        Raises:
            ValueError: If there is no such column, or more than one.
        """
        found = [i for i, other in enumerate(self.names, start=1) if other == name]
        if len(found) == 1:
            return str(found[0])
        problem = f"{len(found)} columns called" if found else "no column"
        raise ValueError(f"{self.path} has {problem} {name!r} ({option}); {self.columns()}")

    def columns(self) -> str:
        """The columns there are, in words."""
        if len(self.names) != 1:
            return f"its columns are {', '.join(map(repr, self.names)) or 'none'}"
        separator = likely_separator(self.names[0])
        hint = f"; if {separator!r} separates columns, give it as --separator" if separator else ""
        return f"its only column is {self.names[0]!r}{hint}"

    def collect(self, columns: Mapping[str, pl.Expr]) -> pl.DataFrame:
        """Reads columns, in the order of the file.

        Raises:
            ValueError: If there are no records, or one of them cannot be read.
        """
        frame = self._read(self.frame.select(**columns))
        if frame.is_empty():
            raise ValueError(f"{self.path} has no rows of data")
        return frame

    def value(self, position: str, record: int) -> object:
        """One value as it stands in the file."""
        return self._read(self.frame.select(position).slice(record, 1)).item()

    def first_value(self, position: str) -> object:
        """The first value of a column that is not empty, or None."""
        filled = pl.col(position).cast(pl.String) != ""
        found = self._read(self.frame.select(position).filter(filled).head(1))
        return None if found.is_empty() else found.item()

    def _read(self, frame: pl.LazyFrame) -> pl.DataFrame:
        try:
            return frame.collect(engine="streaming")
        except pl.exceptions.PolarsError as error:
            raise self.first_fault() or _unreadable(self.path, error) from None


@contextmanager
def open_table(
    path: Path,
    *,
    separator: str | None = None,
    header: bool = True,
    encoding: str = "utf-8",
    quoting: bool = True,
) -> Iterator[Table]:
    """Opens a file of records by its ending: `KINDS`, text and JSON lines also with `.gz` behind.

    Args:
        path: The file. With a `separator`, any other ending is read as text too.
        separator: What stands between the fields of a text; `.csv` and `.tsv` imply theirs.
        header: Whether the first row of a text names its columns.
        encoding: Encoding of text and JSON lines, by any name that Python knows.
        quoting: Whether double quotes enclose fields of a text. With a separator of several
            characters they never do.

    Yields:
        The table, usable inside the `with` block.

    Raises:
        ValueError: If the file is missing, empty or of no known kind, or its text cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path} is a folder, not a file" if path.is_dir() else f"no file {path}")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty")
    ending = Path(path.stem if path.suffix == ".gz" else path).suffix.lower()
    separator = separator.replace("\\t", "\t") if separator else SEPARATORS.get(ending)
    with TemporaryDirectory(prefix="tallrec-") as folder:
        if ending == ".parquet":
            yield _open_parquet(path)
        elif ending in (".jsonl", ".ndjson"):
            yield _open_json(path, plain_text(path, Path(folder), encoding))
        elif separator:
            long = len(separator.encode()) > 1
            plain = plain_text(path, Path(folder), encoding, separator if long else None)
            text = Delimited(path, plain, UNIT if long else separator, quoting and not long)
            yield _open_text(text, header=header)
        elif ending in SEPARATORS:
            row = first_row(path, encoding)
            raise ValueError(
                f"{path}: what separates its columns? Its first row is {row!r}; "
                f"give --separator, for example {likely_separator(row) or ','!r}"
            )
        else:
            raise ValueError(f"{path}: files are {KINDS}; for other text, give --separator")


def _open_text(text: Delimited, *, header: bool) -> Table:
    names = next((fields for _, fields in text.records()), [])
    if not any(names):
        raise ValueError(f"{text.shown}, row 1 is blank: the first record is expected there")
    numbers = [str(i) for i in range(1, len(names) + 1)]
    frame = pl.scan_csv(
        text.path,
        has_header=False,  # the header is read as a record, which sets how many columns there are
        schema=dict.fromkeys(numbers, pl.String()),
        separator=text.separator,
        quote_char='"' if text.quoting else None,
    )

    skipped = int(header)

    def row_of(record: int) -> int:
        return next(islice(text.records(), record + skipped, None))[0]

    names = names if header else numbers
    return Table(text.shown, names, frame.slice(skipped), row_of, text.first_fault)


def _open_json(path: Path, plain: Path) -> Table:
    def records() -> Iterator[tuple[int, dict[str, object]]]:
        with decoding(plain, "utf-8", path), plain.open(encoding="utf-8") as lines:
            for row, line in enumerate(lines, start=1):
                if line.strip():
                    yield row, _json_object(path, row, line)

    def row_of(record: int) -> int:
        return next(islice(records(), record, None))[0]

    def first_fault() -> ValueError | None:
        try:
            for _ in records():
                pass
        except ValueError as fault:
            return fault
        return None

    names = list(dict.fromkeys(key for _, record in islice(records(), _PEEK) for key in record))
    frame = pl.scan_ndjson(plain, schema=dict.fromkeys(names, pl.String()))
    return Table(path, names, _by_position(frame, names), row_of, first_fault)


def _json_object(path: Path, row: int, line: str) -> dict[str, object]:
    record = json_value(path, row, line)
    if not isinstance(record, dict):
        raise ValueError(f'{path}, row {row} is not a JSON object such as {{"user": 1, "item": 2}}')
    return record


def json_value(path: Path, row: int, line: str) -> object:
    """What a line of a file of JSON lines says.

    Raises:
        ValueError: If it is not JSON; file and row are named.
    """
    try:
        value: object = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, row {row} is not JSON: {error.msg}") from None
    return value


def _open_parquet(path: Path) -> Table:
    try:
        frame = pl.scan_parquet(path)
        names = frame.collect_schema().names()
    except pl.exceptions.PolarsError as error:
        raise _unreadable(path, error) from None
    frame = _by_position(frame, names)
    return Table(path, names, frame, lambda record: record + 1, lambda: None)


def _by_position(frame: pl.LazyFrame, names: list[str]) -> pl.LazyFrame:
    return frame.select(pl.col(name).alias(str(i)) for i, name in enumerate(names, start=1))


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read: {str(error).strip().splitlines()[0]}")
