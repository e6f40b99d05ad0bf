"""MovieLens 100K and 1M, as GroupLens publishes them or as RecBole's packages carry them.

Harper and Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015,
https://doi.org/10.1145/2827872. The data may be used for research and not be passed on.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from tallrec.data.reading import open_table
from tallrec.data.sources import source_files
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

    separators: tuple[str, str]  # of ratings and items
    encoding: str = "latin-1"
    header: bool = False
    year: bool = False  # whether the year stands in a third column of the items, not in the title


_RECBOLE = _Layout(("\t", "\t"), "utf-8", header=True, year=True)
_LAYOUTS_100K = {
    ("u.data", "u.item"): _Layout(("\t", "|")),
    ("ml-100k.inter", "ml-100k.item"): _RECBOLE,
}
_LAYOUTS_1M = {
    ("ratings.dat", "movies.dat"): _Layout(("::", "::")),
    ("ml-1m.inter", "ml-1m.item"): _RECBOLE,
}


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
    return _read(source, "movielens-100k", _LAYOUTS_100K)


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
    return _read(source, "movielens-1m", _LAYOUTS_1M)


def _read(source: Path, name: str, layouts: dict[tuple[str, str], _Layout]) -> Dataset:
    with ExitStack() as files:
        paths = files.enter_context(source_files(source, layouts, "MovieLens"))
        layout = layouts[paths[0].name, paths[1].name]
        ratings, items = (
            files.enter_context(
                open_table(
                    path,
                    separator=separator,
                    header=layout.header,
                    encoding=layout.encoding,
                    quoting=False,
                )
            )
            for path, separator in zip(paths, layout.separators, strict=True)
        )
        if layout.year:
            items = replace(items, frame=items.frame.with_columns(_TITLE_WITH_YEAR))
        catalog = read_catalog(items, _ITEMS)
        interactions = read_interactions(ratings, _RATINGS)
        check_known(ratings, _RATINGS, interactions, catalog, items.path)
    return to_dataset(name, "movie", interactions, catalog)
