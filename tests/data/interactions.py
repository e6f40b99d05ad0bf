"""Hand-made data sets."""

import polars as pl

from tallrec.types import Dataset


def dataset(*events: tuple) -> Dataset:
    """From (user, item, rating) or (user, item, rating, timestamp), in the order of a file."""
    users, items, ratings = (list(column) for column in zip(*(e[:3] for e in events), strict=True))
    catalog = pl.DataFrame({"item": sorted(set(items)), "title": sorted(set(items))})
    catalog = catalog.with_columns(creator=pl.lit(None, pl.String))
    interactions = pl.DataFrame(
        {
            "user": pl.Series(users, dtype=pl.Enum(list(dict.fromkeys(users)))),
            "item": pl.Series(items, dtype=pl.Enum(catalog["item"])),
            "rating": pl.Series(ratings, dtype=pl.Float32),
            "timestamp": pl.Series([(*e, None)[3] for e in events], dtype=pl.Int64),
        }
    )
    return Dataset("invented", "movie", interactions, catalog)


def diary(user: str, n: int, start: int = 0, step: int = 1) -> list[tuple]:
    """`n` events of a user: items i0, i1, ...; every second one is liked."""
    return [(user, f"i{i}", 5 if i % 2 else 1, start + i * step) for i in range(n)]
