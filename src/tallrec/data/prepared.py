"""A prepared folder: the parts of a data set as Parquet, with hashes of what is in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from tallrec.files import sha256, whole_folder
from tallrec.types import PARTS, Samples, Splits

_INFO = "prepared.json"
TABLES = ("catalog", "events", *PARTS)
"""The tables of a prepared folder; each is a Parquet file."""
BUCKETS = "buckets.json"
"""In a folder of many prepared folders with one catalogue: a bucket of the users each."""


@dataclass(frozen=True)
class PreparedInfo:
    """How a prepared folder was made.

    Attributes:
        dataset: Name of the data set.
        domain: The noun for an item.
        split: Name of the split.
        history: The longest history a sample shows.
        min_history: The shortest history of a sample.
        like_above: A rating above this is a like.
        seed: Seed of the split.
        implicit: Whether interactions without a rating were kept, as dislikes.
    """

    dataset: str
    domain: str
    split: str
    history: int
    min_history: int
    like_above: float
    seed: int
    implicit: bool = False


@dataclass(frozen=True)
class Prepared:
    """A prepared folder in memory.

    Attributes:
        info: How it was made.
        splits: Its parts.
        hashes: sha256 of each of its tables by name.
    """

    info: PreparedInfo
    splits: Splits
    hashes: dict[str, str]


def write_prepared(
    folder: Path,
    splits: Splits,
    info: PreparedInfo,
    files: Mapping[str, bytes] | None = None,
    *,
    catalog: Path | None = None,
) -> dict[str, str]:
    """Writes a prepared folder; it appears whole or not at all.

    Files: `catalog.parquet` (item, title, creator), `events.parquet` (user, item, liked, rating,
    timestamp; grouped by user, oldest first) and one table for each part (user, start, stop,
    target, liked, timestamp), whose history is `events[start:stop]`.

    Args:
        folder: Where to write; must not exist.
        splits: Parts that share one catalogue and one event table.
        info: How they were made.
        files: Content of other files by name, such as an audit, that belong in the folder.
        catalog: The catalogue's file beside the folder, where several folders share it.

    Returns:
        sha256 of each table by name.

    Raises:
        ValueError: If the folder exists.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists already: give another --out, or remove it first")
    tables = {"catalog": splits.train.catalog, "events": splits.train.events}
    tables |= {name: part.rows for name, part in splits.parts().items()}
    with whole_folder(folder) as partial:
        paths = {name: partial / f"{name}.parquet" for name in TABLES}
        if catalog is not None:
            paths["catalog"] = catalog
            del tables["catalog"]
        for name, table in tables.items():
            table.write_parquet(paths[name])
        hashes = {name: sha256(path) for name, path in paths.items()}
        for name, content in (files or {}).items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_bytes(content)
        text = json.dumps(asdict(info) | {"sha256": hashes}, indent=2)
        (partial / _INFO).write_text(text + "\n", encoding="utf-8")
    return hashes


def read_prepared(folder: Path) -> Prepared:
    """Reads and verifies a prepared folder.

    Raises:
        ValueError: If it is not one, or one of its tables was changed.
    """
    try:
        fields = json.loads((folder / _INFO).read_text(encoding="utf-8"))
        hashes = fields.pop("sha256")
        info = PreparedInfo(**fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        if (folder / BUCKETS).exists():
            raise ValueError(
                f"{folder} is in buckets: give one of them, such as {folder / 'bucket-00000'}"
            ) from None
        raise ValueError(
            f"{folder} is not a prepared folder (it has no readable {_INFO}): make one with "
            f"'tallrec prepare DATASET --split users --out {folder}'"
        ) from None
    tables = {}
    for name in TABLES:
        path = folder / f"{name}.parquet"
        if name == "catalog" and not path.exists():
            path = folder.parent / path.name  # one for all buckets
        if not path.exists() or sha256(path) != hashes.get(name):
            raise ValueError(
                f"{path} is missing or was changed since it was prepared: prepare again"
            )
        tables[name] = pl.read_parquet(path)
    catalog, events = tables["catalog"], tables["events"]
    train, valid, test = (Samples(catalog, events, tables[part]) for part in PARTS)
    return Prepared(info, Splits(train, valid, test), hashes)
