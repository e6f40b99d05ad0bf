"""Sources become interactions, interactions samples, samples splits. Imports no ML library."""

from collections.abc import Callable
from pathlib import Path

from tallrec.data.bookcrossing import read_book_crossing
from tallrec.data.movielens import read_movielens_1m, read_movielens_100k
from tallrec.types import Dataset

__all__ = ["DATASETS"]

DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "movielens-100k": read_movielens_100k,
    "movielens-1m": read_movielens_1m,
    "book-crossing": read_book_crossing,
}
"""Data sets by name: a function that reads the folder or archive with their files."""
