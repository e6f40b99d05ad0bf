from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import polars as pl
import pytest

from tallrec.data.movielens import read_movielens_1m, read_movielens_100k
from tallrec.types import Dataset

# Invented films in the shapes of the real ones: quotes, parentheses, accents, two ids for one
# film, something behind the year, and one film (5) without title and year.
FILMS = {
    "1": ('"Owl" and Its Night, The', "1995"),
    "2": ("Sor, La (Sister, The )", "1960"),
    "3": ("Café, Closed; Forever", "1997"),
    "4": ("Café, Closed; Forever", "1997"),
    "6": ("Last One (1995)", "V"),
}
TITLES = {film: f"{name} ({year})" for film, (name, year) in FILMS.items()} | {"5": "unknown"}
RATINGS = [
    ("22", "3", "5", "881250949"),
    ("7", "1", "1", "881250949"),
    ("22", "2", "3", "875000000"),
    ("7", "5", "4", "890000000"),
    ("1", "6", "4", "890000000"),
]


def write(path: Path, rows: list[tuple[str, ...]], separator: str, encoding: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(separator.join(row) + "\n" for row in rows).encode(encoding))


def grouplens_100k(folder: Path) -> None:
    films = [(film, title, "01-Jan-1995", "", "http://x", "0") for film, title in TITLES.items()]
    write(folder / "u.item", films, "|", "latin-1")
    write(folder / "u.data", RATINGS, "\t", "latin-1")


def grouplens_1m(folder: Path) -> None:
    films = [(film, title, "Drama|War") for film, title in TITLES.items()]
    write(folder / "movies.dat", films, "::", "latin-1")
    write(folder / "ratings.dat", RATINGS, "::", "latin-1")


def recbole_100k(folder: Path) -> None:
    head = [("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq")]
    films = [(film, name, year, "Drama War") for film, (name, year) in FILMS.items()]
    films.append(("5", "unkonwn", "unkonwn", "unknown"))
    write(folder / "ml-100k.item", head + films, "\t", "utf-8")
    head = [("user_id:token", "item_id:token", "rating:float", "timestamp:float")]
    write(folder / "ml-100k.inter", head + RATINGS, "\t", "utf-8")


Writer = Callable[[Path], None]
Reader = Callable[[Path], Dataset]
FORMATS = [
    pytest.param(grouplens_100k, read_movielens_100k, id="grouplens-100k"),
    pytest.param(recbole_100k, read_movielens_100k, id="recbole-100k"),
    pytest.param(grouplens_1m, read_movielens_1m, id="grouplens-1m"),
]


def check(dataset: Dataset) -> None:
    assert dataset.domain == "movie"
    assert dict(dataset.catalog.select("item", "title").iter_rows()) == TITLES
    assert dataset.catalog["creator"].null_count() == len(TITLES)
    assert dataset.interactions.rows() == [
        (user, item, float(rating), int(time)) for user, item, rating, time in RATINGS
    ]
    assert dataset.interactions.schema["user"] == pl.Enum(["22", "7", "1"])
    assert dataset.interactions.schema["item"] == pl.Enum(dataset.catalog["item"])


@pytest.mark.parametrize(("write_files", "read"), FORMATS)
def test_reads_its_folder_in_the_order_of_the_file(
    tmp_path: Path, write_files: Writer, read: Reader
) -> None:
    write_files(tmp_path)
    check(read(tmp_path))


@pytest.mark.parametrize(("write_files", "read"), FORMATS)
def test_reads_a_folder_around_its_folder_and_a_zip_file(
    tmp_path: Path, write_files: Writer, read: Reader
) -> None:
    inner = tmp_path / "around" / "ml"
    write_files(inner)
    with ZipFile(tmp_path / "ml.zip", "w") as archive:
        archive.writestr("ml/README", "about")
        for path in inner.iterdir():
            archive.write(path, f"ml/{path.name}")
    check(read(tmp_path / "around"))
    check(read(tmp_path / "ml.zip"))


def test_reads_recbole_1m_with_titles_for_ids_and_carriage_returns(tmp_path: Path) -> None:
    (tmp_path / "ml-1m.item").write_bytes(
        "item_id:token\tmovie_title:token\trelease_year:float\tgenre:token\r\n"
        "Ñandú, El (1960)\tÑandú, El\t1960\tWar\r\n"
        "Unseen (1999)\tUnseen\t1999\tDrama\r\n".encode()
    )
    (tmp_path / "ml-1m.inter").write_bytes(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\r\n"
        "1m_9\tÑandú, El (1960)\t5\t978300760\r\n".encode()
    )
    dataset = read_movielens_1m(tmp_path)
    assert dataset.interactions.rows() == [("1m_9", "Ñandú, El (1960)", 5.0, 978300760)]
    assert dataset.catalog["title"].to_list() == ["Ñandú, El (1960)", "Unseen (1999)"]


def test_names_the_files_it_expects(tmp_path: Path) -> None:
    grouplens_1m(tmp_path)
    with pytest.raises(ValueError, match=r"u\.data and u\.item or ml-100k\.inter and ml-100k\.it"):
        read_movielens_100k(tmp_path)
    with pytest.raises(ValueError, match="nowhere is not there; give a zip or a folder"):
        read_movielens_100k(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"ratings\.dat is not a whole zip file"):
        read_movielens_100k(tmp_path / "ratings.dat")


def test_names_the_row_of_a_broken_rating(tmp_path: Path) -> None:
    grouplens_100k(tmp_path)
    write(tmp_path / "u.data", [*RATINGS, ("1", "2", "x", "5")], "\t", "latin-1")
    with pytest.raises(ValueError, match=r"u\.data, row 6, column '3': 'x' is not a finite number"):
        read_movielens_100k(tmp_path)


def test_refuses_ratings_of_unknown_films(tmp_path: Path) -> None:
    grouplens_100k(tmp_path)
    write(tmp_path / "u.data", [*RATINGS, ("1", "77", "3", "5")], "\t", "latin-1")
    with pytest.raises(ValueError, match=r"u\.data, row 6, column '2': '77' has no title in .*u\."):
        read_movielens_100k(tmp_path)
