"""Rows of one user into one bucket, whichever file and machine they are on."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import polars as pl

from tallrec.scale.storage import Store, fetched

ROW, KEY, _BUCKET = "tallrec row", "tallrec key", "tallrec bucket"
"""Columns of scattered rows: a row's number in all files, and what decides on its bucket."""
ROWS = 4_000_000
"""Rows of a file that one worker holds at once while it scatters them."""


@dataclass(frozen=True)
class Piece:
    """Some rows of a file.

    Attributes:
        url: The file.
        number: The piece's place among all pieces.
        first: Number of its first row among all rows of all files.
        start: Number of its first row in the file.
        rows: How many rows it has.
    """

    url: str
    number: int
    first: int
    start: int
    rows: int

    @property
    def name(self) -> str:
        """What its files in the buckets are called; in order of the rows."""
        return f"{self.number:06}.parquet"


def bucket_of(ids: pl.Series, buckets: int) -> pl.Series:
    """The bucket of each id: CRC-32 of its UTF-8 bytes, modulo the number of buckets.

    Neither Polars' nor Python's own hash is the same in every version and process. What has no id
    is in bucket 0.
    """
    distinct = ids.drop_nulls().unique()
    numbers = [zlib.crc32(text.encode()) % buckets for text in distinct]
    return ids.replace_strict(distinct, numbers, default=0, return_dtype=pl.UInt32)


def pieces_of(files: Mapping[str, str], rows: int = ROWS) -> list[Piece]:
    """All rows of Parquet files, in pieces of at most so many."""
    pieces: list[Piece] = []
    first = 0
    for url in files:
        with fetched(url) as path:
            count = int(pl.scan_parquet(path).select(pl.len()).collect().item())
        for start in range(0, count, rows):
            size = min(rows, count - start)
            pieces.append(Piece(url, len(pieces), first + start, start, size))
        first += count
    return pieces


def scatter(
    _worker: object,
    *,
    piece: Piece,
    read: Callable[[pl.LazyFrame], pl.LazyFrame],
    out: Store,
    buckets: int,
) -> None:
    """Writes the rows of a piece into the folders of their buckets.

    Args:
        _worker: Needs no state of a worker.
        piece: Which rows.
        read: Makes the columns to keep of a file's (and `ROW`), and `KEY` (String), which
            decides on the bucket.
        out: The buckets' folders go here, and in `done` a file that says that all are there.
        buckets: How many there are.
    """
    with fetched(piece.url) as path:
        rows = pl.scan_parquet(path).slice(piece.start, piece.rows)
        frame = read(rows.with_row_index(ROW, offset=piece.first)).collect()
    keyed = frame.with_columns(bucket_of(frame[KEY], buckets).alias(_BUCKET)).drop(KEY)
    parts = keyed.partition_by(_BUCKET, as_dict=True, include_key=False)
    for (bucket,), part in parts.items():
        (out / folder_of(int(bucket))).put_table(piece.name, part)
    (out / "done").put_facts(piece.name, {"rows": frame.height})


def gathered(scattered: Store, bucket: int) -> pl.DataFrame | None:
    """All rows of a bucket in the order of the files; None if it has none."""
    folder = scattered / folder_of(bucket)
    parts = [folder.table(name) for name in sorted(folder.names()) if name.endswith(".parquet")]
    return pl.concat(parts) if parts else None


def folder_of(bucket: int) -> str:
    """The name of a bucket's folder."""
    return f"bucket-{bucket:05}"
