"""Text files of records: any encoding, any separator, gzip, and where exactly one is broken.

Polars reads UTF-8 with a separator of one byte; other text is rewritten so, once and in pieces,
into a temporary file. A file that cannot be read is walked again, slowly, to name the row.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO, cast

UNIT = "\x1f"  # the ASCII unit separator stands in for separators of several bytes
_PIECE = 1 << 22  # characters, or bytes, handled at a time


def plain_text(path: Path, folder: Path, encoding: str, separator: str | None = None) -> Path:
    """A UTF-8 copy of a text without byte order mark, or the file itself where it is that already.

    Args:
        path: A text file, gzipped if its name ends in `.gz`.
        folder: Where the copy goes.
        encoding: The encoding of `path`, by any name that Python knows.
        separator: Replaced by `UNIT`; None changes nothing.

    Raises:
        ValueError: If the encoding is unknown or the file is not written in it.
    """
    _check_encoding(encoding)
    if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig"):
        with path.open("rb") as file:
            marked = file.read(3) == codecs.BOM_UTF8
        if not (separator or marked or path.suffix == ".gz"):
            return path
        encoding = "utf-8-sig"
    copy = folder / f"{path.name}.txt"
    with (
        decoding(path, encoding),
        _open_text(path, encoding) as source,
        copy.open("w", encoding="utf-8", newline="") as target,
    ):
        row = 1
        while piece := source.read(_PIECE):
            piece += source.readline()  # so that no cut falls inside a separator
            if separator:
                before, unit, _ = piece.partition(UNIT)
                row += before.count("\n")
                if unit:
                    raise ValueError(
                        f"{path}, row {row} has a control character, U+001F; remove it"
                    )
                piece = piece.replace(separator, UNIT)
            target.write(piece)
    return copy


def first_row(path: Path, encoding: str) -> str:
    """The first line of a text, without its end."""
    _check_encoding(encoding)
    with decoding(path, encoding), _open_text(path, encoding) as lines:
        return lines.readline().rstrip("\r\n")


def likely_separator(line: str) -> str | None:
    """The usual separator that a line contains most often, if any."""
    counts = {mark: line.count(mark) for mark in ("::", "\t", ";", "|", ",")}
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else None


@contextmanager
def decoding(path: Path, encoding: str, shown: Path | None = None) -> Iterator[None]:
    """Turns errors of decoding into ones that name the byte, its row and the way out.

    Args:
        path: The file being decoded.
        encoding: The encoding it is taken to have.
        shown: The file to name, if another.

    Raises:
        ValueError: In place of a decoding error.
    """
    try:
        yield
    except UnicodeDecodeError:
        raise _undecodable(path, encoding, shown or path) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from None


@dataclass(frozen=True)
class Delimited:
    """A text of separated fields, in UTF-8 with a separator of one byte.

    Attributes:
        shown: The file that messages name.
        path: The same or its plain copy, see `plain_text`.
        separator: One byte.
        quoting: Whether double quotes enclose fields.
    """

    shown: Path
    path: Path
    separator: str
    quoting: bool

    def records(self, *, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
        """First row, from 1, and fields of every record, the header and blank lines included.

        Raises:
            ValueError: At bytes that are not UTF-8 or, if `strict`, at quotes out of place.
        """
        with (
            decoding(self.path, "utf-8", self.shown),
            self.path.open(encoding="utf-8", newline="") as lines,
        ):
            reader = csv.reader(
                lines,
                delimiter=self.separator,
                quoting=csv.QUOTE_MINIMAL if self.quoting else csv.QUOTE_NONE,
                strict=strict,
            )
            row = 1
            try:
                for fields in reader:
                    yield row, fields
                    row = reader.line_num + 1
            except csv.Error as error:
                raise ValueError(
                    f"{self.shown}, row {row}: broken quotes ({error}). A quote inside a quoted "
                    f'field is written twice (""); if quotes mean nothing here, give --no-quoting'
                ) from None

    def first_fault(self) -> ValueError | None:
        """Why the text cannot be read: the first bad byte, quote or number of fields, if any."""
        wanted, too_short = 0, None
        separator = "separator" if self.separator == UNIT else repr(self.separator)
        try:
            for row, fields in self.records(strict=True):
                wanted = wanted or len(fields)
                if not fields or len(fields) == wanted:
                    continue
                ragged = ValueError(
                    f"{self.shown}, row {row} has {len(fields)} columns where row 1 has {wanted}: "
                    f"is there a {separator} in a field without quotes around it?"
                )
                if len(fields) > wanted:
                    return ragged
                too_short = too_short or ragged
        except ValueError as fault:
            return fault
        return too_short


def _check_encoding(encoding: str) -> None:
    try:
        "".encode(encoding)
    except LookupError:
        raise ValueError(
            f"{encoding!r} is no text encoding (--encoding): try utf-8, latin-1, cp1252 or utf-16"
        ) from None


def _open_text(path: Path, encoding: str) -> TextIO:
    return io.TextIOWrapper(_open_bytes(path), encoding=encoding, newline="")


def _open_bytes(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _undecodable(path: Path, encoding: str, shown: Path) -> ValueError:
    """Finds the first byte that the encoding does not allow."""
    decoder = codecs.getincrementaldecoder(encoding)()
    read, row = 0, 1
    with _open_bytes(path) as file:
        other = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "latin-1"
        file.seek(0)
        while True:
            piece = file.read(_PIECE)
            read += len(piece)
            try:
                row += decoder.decode(piece, final=not piece).count("\n")
            except UnicodeDecodeError as error:
                bad, at = error.object, error.start
                row += bad[:at].decode(encoding, errors="replace").count("\n")
                return ValueError(
                    f"{shown}, row {row}: byte {read - len(bad) + at} (0x{bad[at]:02x}) is not "
                    f"{encoding.removesuffix('-sig')}; give the file's encoding, for example "
                    f"--encoding {other}"
                )
            assert piece, "the file has just failed to decode"
