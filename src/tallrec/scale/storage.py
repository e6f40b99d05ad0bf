"""Files on a local disk or in object storage, by URL; each appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import polars as pl
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

_UNFINISHED = ".tmp"


@dataclass(frozen=True)
class Store:
    """A folder of files, known to every machine by its URL.

    Attributes:
        url: Of any kind that fsspec knows (`file:///...`, `s3://...` with s3fs installed).
    """

    url: str

    @classmethod
    def at(cls, place: str) -> Store:
        """The store at a path or URL.

        Raises:
            ValueError: If there is no such kind of URL.
        """
        files, path = _open(place)
        return cls(files.unstrip_protocol(path))

    @cached_property
    def _place(self) -> tuple[AbstractFileSystem, str]:
        return _open(self.url)

    def __truediv__(self, name: str) -> Store:
        return replace(self, url=f"{self.url.rstrip('/')}/{name}")

    def names(self) -> set[str]:
        """What the folder holds; nothing where there is no folder.

        Files that are being put, or were when their writer died, are not there yet.
        """
        files, root = self._place
        files.invalidate_cache()  # other machines write here too
        try:
            found = files.ls(root, detail=False)
        except FileNotFoundError:
            return set()
        names = {path.rstrip("/").rsplit("/", 1)[-1] for path in found}
        return {name for name in names if not name.endswith(_UNFINISHED)}

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """Yields a file's path on this machine: its own, or that of a copy."""
        with fetched((self / name).url) as path:
            yield path

    @contextmanager
    def local_tree(self, *names: str) -> Iterator[Path]:
        """Yields a folder of this machine that has these files, named relative to this one."""
        files, root = self._place
        if isinstance(files, LocalFileSystem):
            yield Path(root)
            return
        with TemporaryDirectory(prefix="tallrec-") as folder:
            for name in names:
                copy = Path(folder) / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(f"{root}/{name}", str(copy))
            yield Path(folder)

    def put(self, name: str, file: Path) -> None:
        """Copies a file of this machine to the store, under another name until it is there."""
        files, root = self._place
        temporary = f"{root}/.{uuid4().hex}.{name}{_UNFINISHED}"
        files.makedirs(root, exist_ok=True)
        try:
            files.put_file(str(file), temporary)
            files.mv(temporary, f"{root}/{name}")
        finally:
            if files.exists(temporary):
                files.rm(temporary)

    def put_table(self, name: str, table: pl.DataFrame) -> None:
        """Writes a table as Parquet; see `put`."""
        with TemporaryDirectory(prefix="tallrec-") as folder:
            file = Path(folder) / "table.parquet"
            table.write_parquet(file)
            self.put(name, file)

    def table(self, name: str) -> pl.DataFrame:
        """Reads a table that `put_table` wrote."""
        with self.local(name) as path:
            return pl.read_parquet(path)

    def put_facts(self, name: str, facts: dict[str, Any]) -> None:
        """Writes a JSON file; see `put`."""
        with TemporaryDirectory(prefix="tallrec-") as folder:
            file = Path(folder) / "facts.json"
            file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            self.put(name, file)

    def facts(self, name: str) -> dict[str, Any] | None:
        """Reads a JSON file; None if there is none."""
        if name not in self.names():
            return None
        with self.local(name) as path:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return content

    def remove(self) -> None:
        """Removes the folder with all that is in it, if there is one."""
        files, root = self._place
        if files.isdir(root):
            files.rm(root, recursive=True)


@contextmanager
def fetched(url: str) -> Iterator[Path]:
    """Yields the path of a file on this machine: its own, or that of a copy."""
    files, path = _open(url)
    if isinstance(files, LocalFileSystem):
        yield Path(path)
        return
    with TemporaryDirectory(prefix="tallrec-") as folder:
        copy = Path(folder) / path.rsplit("/", 1)[-1]
        files.get_file(path, str(copy))
        yield copy


def parquet_files(url: str) -> dict[str, str]:
    """The Parquet files of a file, folder or pattern by URL, in order of their names.

    Returns:
        What identifies the content of each: another value says that it was changed.

    Raises:
        ValueError: If there are none.
    """
    files, path = _open(url)
    if files.isdir(path):
        path = f"{path.rstrip('/')}/**/*.parquet"
    found = sorted(files.glob(path))
    if not found:
        raise ValueError(f"there is no Parquet file at {url}")
    return {files.unstrip_protocol(name): files.ukey(name) for name in found}


def _open(url: str) -> tuple[AbstractFileSystem, str]:
    try:
        files, path = url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{url} cannot be opened: {error}") from None
    return files, str(path)
