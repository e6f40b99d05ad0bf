"""General instruction records for the first tuning stage (TALLRec section 3.2, "Alpaca tuning")."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tallrec.data.reading import json_value
from tallrec.types import Instruction

_KEYS = ("instruction", "input", "output")
_SHAPE = '{"instruction": "...", "input": "...", "output": "..."}'


def read_instructions(source: Path) -> list[Instruction]:
    """Reads records in the form of the Stanford Alpaca data.

    Further keys of a record are left aside, and `input` may be missing. Records without an output
    teach nothing and are left out: the released Alpaca data holds some.

    Args:
        source: A JSON file with one list, a file of JSON lines, a Parquet file, or a folder of
            such files, which are read in the order of their names.

    Returns:
        The records in the order of the file.

    Raises:
        ValueError: If a file or a record cannot be read; the record is named by its number in
            the file, from 1.
    """
    records = [record for file in instruction_files(source) for record in _read(file)]
    kept = [record for record in records if record.output.strip()]
    if not kept:
        raise ValueError(f"{source} holds no record with an output; wanted are {_SHAPE}")
    return kept


def draw_instructions(
    records: Sequence[Instruction], count: int, *, seed: int
) -> list[Instruction]:
    """Draws records without replacement, in random order.

    Raises:
        ValueError: If there are fewer.
    """
    if not 1 <= count <= len(records):
        raise ValueError(f"count must be between 1 and the {len(records)} records; got {count}")
    order = np.random.default_rng(seed).permutation(len(records))
    return [records[i] for i in order[:count]]


def instruction_files(source: Path) -> list[Path]:
    """The files that `read_instructions` reads, in its order.

    Raises:
        ValueError: If there are none.
    """
    if not source.is_dir():
        if not source.exists():
            raise ValueError(f"there is no file or folder {source}")
        return [source]
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in READERS)
    if not files:
        raise ValueError(f"{source} holds no {', '.join(READERS)} file")
    return files


def _read(path: Path) -> Iterator[Instruction]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} is none of {', '.join(READERS)}")
    for number, record in enumerate(reader(path), start=1):
        yield _instruction(record, f"{path}, record {number}")


def _instruction(record: Any, where: str) -> Instruction:
    if not isinstance(record, dict):
        raise ValueError(f"{where} is not an object such as {_SHAPE}")
    values = {"input": "", **{key: record[key] for key in _KEYS if record.get(key) is not None}}
    for key in _KEYS:
        if key not in values:
            raise ValueError(f"{where} has no {key!r} (it has {', '.join(record) or 'nothing'})")
        if not isinstance(values[key], str):
            raise ValueError(f"{where}: {key!r} is not text but {values[key]!r}")
    if not values["instruction"].strip():
        raise ValueError(f"{where} has an empty 'instruction'")
    return Instruction(**values)


def _read_json(path: Path) -> Iterable[Any]:
    text = _text(path)
    if text.lstrip()[:1] == "{":  # many files of JSON lines are called .json
        return _lines(path, text)
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno} is not JSON: {error.msg}") from None
    if not isinstance(records, list):
        raise ValueError(f"{path} does not hold a list of records such as [{_SHAPE}, ...]")
    return records


def _read_jsonl(path: Path) -> Iterable[Any]:
    return _lines(path, _text(path))


def _lines(path: Path, text: str) -> Iterator[Any]:
    for row, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield json_value(path, row, line)


def _read_parquet(path: Path) -> Iterable[Any]:
    try:
        return pl.read_parquet(path).iter_rows(named=True)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path} is not Parquet: {str(error).splitlines()[0]}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start + 1}") from None


READERS: dict[str, Callable[[Path], Iterable[Any]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
