"""Where a published data set's files lie: a folder, a folder in it, or a zip file."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile


@contextmanager
def source_files(
    source: Path, pairs: Collection[tuple[str, str]], publisher: str
) -> Iterator[tuple[Path, Path]]:
    """Finds the two files of a data set.

    Args:
        source: A folder or zip file that holds them, in its first or second level.
        pairs: The names that ratings and items may have together, the likeliest first.
        publisher: Whose files they are, for the message.

    Yields:
        The files of the first pair that is there, usable inside the `with` block.

    Raises:
        ValueError: If there is no such source, or neither pair is in it.
    """
    with _unpacked(source, {name for pair in pairs for name in pair}) as folder:
        if not folder.is_dir():
            raise ValueError(f"{source} is not there; give a zip or a folder")
        for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
            for ratings, items in pairs:
                if (place / ratings).is_file() and (place / items).is_file():
                    yield place / ratings, place / items
                    return
        expected = " or ".join(f"{ratings} and {items}" for ratings, items in pairs)
        raise ValueError(f"{source} has no {publisher} files: {expected} are expected there")


@contextmanager
def _unpacked(source: Path, wanted: set[str]) -> Iterator[Path]:
    """A folder with the files of `source`: itself, or what a zip file contains."""
    if not source.is_file():
        yield source
        return
    with TemporaryDirectory(prefix="tallrec-") as folder:
        try:
            with ZipFile(source) as archive:
                for member in archive.namelist():
                    if Path(member).name in wanted:
                        archive.extract(member, folder)
        except BadZipFile:
            raise ValueError(f"{source} is not a whole zip file; give a zip or a folder") from None
        yield Path(folder)
