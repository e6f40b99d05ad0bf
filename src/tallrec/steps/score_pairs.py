"""Scores of any table of users and items: chunk by chunk, resumable, in bounded memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from tallrec.data.histories import unknown_user
from tallrec.data.prepared import Prepared, read_prepared
from tallrec.files import locked_folder, sha256, whole_file, write_atomically
from tallrec.progress import shown
from tallrec.run import RunDir
from tallrec.steps.asked import Asked
from tallrec.steps.data import Say
from tallrec.steps.score import finished_run, write_table
from tallrec.types import Samples

ROWS = 4096
"""Rows of a chunk: what they begin with alike is computed once."""
_EVENT = pl.Schema({"item": pl.String, "liked": pl.Boolean})
_NEW = ("log_odds", "probability")


def score_pairs(
    path: Path,
    table: Path,
    out: Path,
    *,
    data: Path | None = None,
    by: str | None = None,
    rows: int = ROWS,
    say: Say = print,
) -> int:
    """Scores every row of a Parquet table with a run: the mean log-odds of the run's seeds.

    What is computed is kept in a hidden folder beside `out` until all is there; the same call goes
    on from it. Rows of one user cost least where they stand together.

    Args:
        path: The run.
        table: A Parquet file with `item` and, either, `user` (of the prepared data; the history is
            what that user met before the item) or `history`, a list of structs of `item` and
            `liked`, oldest first. Other columns are kept.
        out: The Parquet file to write: the table with `log_odds` and `probability` of a like.
        data: A prepared folder instead of the run's own.
        by: What scores, one of `BY`; unless given, the Gaussian process if the run's recipe has
            one.
        rows: How many rows are held at once.
        say: Shows a line to the user.

    Returns:
        How many rows there are.

    Raises:
        ValueError: If the run is unfinished, the table is not right, or another process is at it.
    """
    run = finished_run(path)
    prepared = read_prepared(data or Path(run.info["data"]["folder"]))
    asked = Asked.of(run, prepared, by)
    lazy, total = _read(table, prepared)
    parts = out.with_name(f".{out.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    with locked_folder(parts):
        _begin(parts, _identity(asked, prepared, table, rows))
        _score_missing(asked, prepared, lazy, parts, total, rows, say)
        _assemble(table, parts, run, out)
    shutil.rmtree(parts)
    return total


def _read(table: Path, prepared: Prepared) -> tuple[pl.LazyFrame, int]:
    """The table, with ids as text, and its number of rows; each item and user is known."""
    try:
        lazy = pl.scan_parquet(table)
        schema = lazy.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{table} is not a Parquet file that can be read: {error}") from None
    ids = check_columns(schema, str(table))
    lazy = lazy.with_columns(pl.col(ids).cast(pl.String))
    total = int(lazy.select(pl.len()).collect().item())
    if not total:
        raise ValueError(f"{table} has no rows")
    for name in ids:
        _check(table, lazy, name, prepared.splits.train)
    return lazy, total


def check_columns(schema: pl.Schema, where: str) -> list[str]:
    """Refuses a table that cannot be scored.

    Args:
        schema: Its columns.
        where: What to call it.

    Returns:
        Its columns of ids that must be known.

    Raises:
        ValueError: If columns are missing, taken or of a wrong type.
    """
    if "item" not in schema or not {"user", "history"} & set(schema):
        raise ValueError(
            f"{where} needs a column item and one of user and history; it has {', '.join(schema)}"
        )
    if taken := set(_NEW) & set(schema):
        raise ValueError(f"{where} has a column {min(taken)} already: rename it")
    ids = ids_of(schema)
    for name in ids:
        if not (schema[name].is_integer() or schema[name] == pl.String):
            raise ValueError(f"{where}: {name} must be text or whole numbers, not {schema[name]}")
    if "history" in schema and not _is_history(schema["history"]):
        raise ValueError(
            f"{where}: history must be a list of structs of item (text) and liked (true or false), "
            f"not {schema['history']}"
        )
    return ids


def ids_of(schema: pl.Schema) -> list[str]:
    """The columns of a table that hold ids of the data."""
    return ["item"] if "history" in schema else ["user", "item"]


def _is_history(dtype: pl.DataType) -> bool:
    inner = dtype.inner if isinstance(dtype, pl.List) else None
    return isinstance(inner, pl.Struct) and inner.to_schema() == _EVENT


def _check(table: Path, lazy: pl.LazyFrame, column: str, samples: Samples) -> None:
    """Finds the first row whose user or item is not in the data, before hours are spent."""
    unknown = unknown_in(samples, column)
    found = lazy.select(column).with_row_index("row").filter(unknown).head(1)
    row = found.collect(engine="streaming")
    if row.is_empty():
        return
    number, value = row.row(0)
    if column == "user" and value is not None:
        raise ValueError(f"{table}, row {number}: {unknown_user(samples, value)}")
    raise ValueError(f"{table}, row {number}: there is no {column} {value!r} in the data")


def unknown_in(samples: Samples, column: str) -> pl.Expr:
    """True where the `user` or `item` (String) of a table is not in the data, or none."""
    known = samples.catalog["item"] if column == "item" else samples.events["user"].unique()
    return pl.col(column).is_in(known.cast(pl.String).implode(), nulls_equal=True).not_()


def _identity(asked: Asked, prepared: Prepared, table: Path, rows: int) -> bytes:
    """What scores depend on: kept scores of anything else are not used."""
    facts = {"table": sha256(table), **hashes_of(asked), "data": prepared.hashes, "rows": rows}
    return json.dumps(facts, indent=2).encode()


def hashes_of(asked: Asked) -> dict[str, Any]:
    """What exactly is asked."""
    run = asked.run
    adapters = (run.adapter(seed) for seed in run.recipe.seeds)
    return {
        "by": asked.by,
        "recipe": sha256(run.path / "recipe.toml"),
        "adapters": [a and sha256(a / "adapter_model.safetensors") for a in adapters],
    }


def _begin(parts: Path, identity: bytes) -> None:
    """Removes the parts of other scores."""
    file = parts / "of.json"
    if not file.is_file() or file.read_bytes() != identity:
        for part in parts.glob("seed-*"):
            part.unlink()
        write_atomically(file, identity)


def _score_missing(
    asked: Asked,
    prepared: Prepared,
    table: pl.LazyFrame,
    parts: Path,
    total: int,
    rows: int,
    say: Say,
) -> None:
    """Writes the parts that are not there yet, seed by seed."""
    missing = {
        seed: [start for start in range(0, total, rows) if not _part(parts, seed, start).exists()]
        for seed in asked.run.recipe.seeds
    }
    if not any(missing.values()):
        return
    scorer_of = asked.scorers(prepared.info.domain, say=say)
    for seed, starts in missing.items():
        with scorer_of(seed) as scorer, shown(f"Scoring, seed {seed}") as on_progress:
            for start in starts:
                on_progress(start, total, "")
                chunk = table.slice(start, rows).collect(engine="streaming")
                try:
                    scores = scorer(asked.questions(prepared, chunk))
                except ValueError as error:
                    raise ValueError(
                        f"rows {start} to {start + chunk.height - 1}: {error}"
                    ) from None
                write_table(_part(parts, seed, start), pl.DataFrame({log_odds_of(seed): scores}))
            on_progress(total, total, "")


def _part(parts: Path, seed: int, start: int) -> Path:
    return parts / f"seed-{seed}-{start:012}.parquet"


def log_odds_of(seed: int) -> str:
    """The column of one seed's scores."""
    return f"tallrec log-odds, seed {seed}"  # no column of a table is called so


def _assemble(table: Path, parts: Path, run: RunDir, out: Path) -> None:
    """Streams the table and its scores beside each other into one file."""
    seeds = [log_odds_of(seed) for seed in run.recipe.seeds]
    scores = [pl.scan_parquet(parts / f"seed-{seed}-*.parquet") for seed in run.recipe.seeds]
    beside = pl.concat([pl.scan_parquet(table), *scores], how="horizontal")
    with whole_file(out) as temporary:
        beside.with_columns(*mean_of(seeds)).drop(seeds).sink_parquet(temporary)


def mean_of(seeds: Sequence[str]) -> tuple[pl.Expr, pl.Expr]:
    """`log_odds` and `probability` of a like, of columns of seeds."""
    log_odds = pl.mean_horizontal(seeds)
    return log_odds.alias("log_odds"), (1 / (1 + (-log_odds).exp())).alias("probability")
