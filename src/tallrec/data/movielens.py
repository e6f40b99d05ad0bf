"""MovieLens 100K and 1M, as GroupLens publishes them or as RecBole's packages carry them.

Harper and Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015,
https://doi.org/10.1145/2827872. The data may be used for research and not be passed on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from zipfile import BadZipFile, ZipFile

import polars as pl

from tallrec.data.reading import Table, open_table
from tallrec.data.values import check_known, read_catalog, read_interactions, to_dataset

if TYPE_CHECKING:
    from tallrec.types import Dataset

_RATINGS = {"user": "1", "item": "2", "rating": "3", "timestamp": "4"}
_ITEMS = {"item": "1", "title": "2"}
_TITLE_WITH_YEAR = (
    pl.when(pl.col("3") == "unkonwn")  # RecBole's word for the one movie without title and year
    .then(pl.lit("unknown"))
    .otherwise(pl.format("{} ({})", "2", "3"))
    .alias("2")
)


@dataclass(frozen=True)
class _Layout:
    """How one publisher wrote a data set: two files of the same kind, columns in a fixed order."""

    ratings: str
    items: str
    separators: tuple[str, str]
    encoding: str = "latin-1"
    header: bool = False
    year: bool = False  # whether the year stands in a third column of the items, not in the title


_GROUPLENS_100K = _Layout("u.data", "u.item", ("\t", "|"))
_GROUPLENS_1M = _Layout("ratings.dat", "movies.dat", ("::", "::"))
_RECBOLE_100K = _Layout("ml-100k.inter", "ml-100k.item", ("\t", "\t"), "utf-8", True, True)
_RECBOLE_1M = _Layout("ml-1m.inter", "ml-1m.item", ("\t", "\t"), "utf-8", True, True)


def read_movielens_100k(source: Path) -> Dataset:
    """Reads 100,000 ratings of 1,682 movies by 943 users, in the order of the ratings file.

    Args:
        source: The folder or zip file of GroupLens (`u.data`, `u.item`), or a folder with RecBole's
            `ml-100k.inter` and `ml-100k.item`.

    Returns:
        The data set; titles end in the year, `Toy Story (1995)`, the articles as published:
        `Usual Suspects, The (1995)`. One movie may have several ids.

    Raises:
        ValueError: If the files are not there or broken.
    """
    return _read(source, "movielens-100k", (_GROUPLENS_100K, _RECBOLE_100K))


def read_movielens_1m(source: Path) -> Dataset:
    """Reads 1,000,209 ratings of 3,706 movies by 6,040 users, in the order of the ratings file.

    Args:
        source: The folder or zip file of GroupLens (`ratings.dat`, `movies.dat`), or a folder with
            RecBole's `ml-1m.inter` and `ml-1m.item`, whose users are called `1m_1`, `1m_2`, ...
            and whose item ids are titles.

    Returns:
        The data set with all 3,883 movies, titled as in `read_movielens_100k`.

    Raises:
        ValueError: If the files are not there or broken.
    """
    return _read(source, "movielens-1m", (_GROUPLENS_1M, _RECBOLE_1M))


def _read(source: Path, name: str, layouts: tuple[_Layout, ...]) -> Dataset:
    with ExitStack() as files:
        folder, layout = _find(files.enter_context(_unpacked(source, layouts)), source, layouts)

        def opened(file: str, separator: str) -> Table:
            return files.enter_context(
                open_table(
                    folder / file,
                    separator=separator,
                    header=layout.header,
                    encoding=layout.encoding,
                    quoting=False,
                )
            )

        items = opened(layout.items, layout.separators[1])
        if layout.year:
            items = replace(items, frame=items.frame.with_columns(_TITLE_WITH_YEAR))
        catalog = read_catalog(items, _ITEMS)
        ratings = opened(layout.ratings, layout.separators[0])
        interactions = read_interactions(ratings, _RATINGS)
        check_known(ratings, _RATINGS, interactions, catalog, items.path)
    return to_dataset(name, "movie", interactions, catalog)


@contextmanager
def _unpacked(source: Path, layouts: tuple[_Layout, ...]) -> Iterator[Path]:
    """A folder with the files of `source`: itself, or what a zip file contains."""
    if not source.is_file():
        yield source
        return
    wanted = {file for layout in layouts for file in (layout.ratings, layout.items)}
    with TemporaryDirectory(prefix="tallrec-") as folder:
        try:
            with ZipFile(source) as archive:
                for member in archive.namelist():
                    if Path(member).name in wanted:
                        archive.extract(member, folder)
        except BadZipFile:
            raise ValueError(f"{source} is not a whole zip file; give a zip or a folder") from None
        yield Path(folder)


def _find(folder: Path, source: Path, layouts: tuple[_Layout, ...]) -> tuple[Path, _Layout]:
    """The folder, or the one in it, that has both files of a layout."""
    if not folder.is_dir():
        raise ValueError(f"{source} is not there; give a zip or a folder")
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        for layout in layouts:
            if (place / layout.ratings).is_file() and (place / layout.items).is_file():
                return place, layout
    pairs = " or ".join(f"{layout.ratings} and {layout.items}" for layout in layouts)
    raise ValueError(f"{source} has no MovieLens files: {pairs} are expected there")
