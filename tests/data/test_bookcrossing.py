"""An invented dump with everything that is wrong in the real one."""

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallrec.data.bookcrossing import read_book_crossing

IMAGES = ';"http://x/S.jpg";"http://x/M.jpg";"http://x/L.jpg"'
BOOKS = [
    '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher";"Image-URL-S";'
    '"Image-URL-M";"Image-URL-L"',
    '"01";"The Owl; a Novel";"Ann Ash";"1999";"P"' + IMAGES,
    r'"02";"\"Owl\" Is for Night &amp; Day";"Bob Birch";"0";"P"' + IMAGES,
    '"0X";"Ein gÃ?Â¼tiger FuÃ?Â? in den StÃ¤dten";"ChloÃ© Zède";"2000";"P"' + IMAGES,  # row 4
    '"03";"Stray "quotes" in a title";"A";"2000";"P"' + IMAGES,
    '"04";"Never closed;"A";"2000";"P"' + IMAGES,
    r'"05";"Ends in an escape\";An Author";"2000";"P"' + IMAGES,
    '"06";"One too many";"A";"extra";"2000";"P"' + IMAGES,  # row 8
    "",
    '"07";"";"Nobody";"2000";"P"' + IMAGES,
    '"01";"The Owl again";"Ann Ash";"2001";"P"' + IMAGES,
    '"08";"Written by \x93nobody\x94";NULL;"2000";"P"' + IMAGES,  # row 12
    '"09";"In ""pairs""";"";"2000";"P"' + IMAGES,
]
RATINGS = [
    '"User-ID";"ISBN";"Book-Rating"',
    '"12";"01";"0"',
    '"7";"0X";"10"',
    '"12";"02";"6"',  # row 4
    r'"7";"\"0001";"5"',
    '"7";"02"',
    '"7";"02";"5";"9"',
    '"7";"0"2";"5"',  # row 8
    '"7";"02";"eleven"',
    '"7";"02";"11"',
    '"";"02";"5"',
    '"12";"01";"9"',  # row 12
    '"7";"03";"5"',
    '"7";"09";"5"',
]
CATALOG = [
    ("01", "The Owl; a Novel", "Ann Ash"),
    ("02", '"Owl" Is for Night & Day', "Bob Birch"),
    ("0X", "Ein gütiger Fu� in den Städten", "Chloé Zède"),
    ("08", "Written by “nobody”", None),
    ("09", 'In "pairs"', None),
]
EVENTS = [("12", "01", 0.0), ("7", "0X", 10.0), ("12", "02", 6.0), ("7", "09", 5.0)]


def write(folder: Path, books: list[str] = BOOKS, ratings: list[str] = RATINGS) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in (("BX-Books.csv", books), ("BX-Book-Ratings.csv", ratings)):
        (folder / name).write_bytes("".join(f"{row}\r\n" for row in rows).encode("latin-1"))
    return folder


def read_quietly(source: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_book_crossing(source)


def test_reads_every_whole_row_and_repairs_its_text(tmp_path):
    dataset = read_quietly(write(tmp_path / "dump"))
    assert dataset.catalog.rows() == CATALOG
    assert dataset.interactions.select("user", "item", "rating").rows() == EVENTS
    assert dataset.interactions["timestamp"].null_count() == len(EVENTS)
    assert dataset.interactions.schema["user"] == pl.Enum(["12", "7"])
    assert (dataset.name, dataset.domain) == ("book-crossing", "book")
    assert (dataset.like_above, dataset.unrated) == (5.0, 0.0)


def test_a_zip_file_reads_like_its_folder(tmp_path):
    folder = write(tmp_path / "dump")
    with ZipFile(tmp_path / "dump.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"BX-CSV-Dump/{path.name}")
    from_zip, from_folder = read_quietly(tmp_path / "dump.zip"), read_quietly(folder)
    assert from_zip.interactions.equals(from_folder.interactions)
    assert from_zip.catalog.equals(from_folder.catalog)


def test_what_is_left_out_is_counted_with_its_rows(tmp_path):
    with pytest.warns(UserWarning, match="rows are left out") as caught:
        read_book_crossing(write(tmp_path / "dump"))
    assert [str(warning.message) for warning in caught] == [
        "BX-Books.csv: 6 of 11 rows are left out: 2 with quotes out of place (row 5, 6); "
        "2 with more or fewer than 8 fields (row 7, 8); 1 without an ISBN or a title (row 10); "
        "1 with the ISBN of an earlier row (row 11)",
        "BX-Book-Ratings.csv: 9 of 13 rows are left out: "
        "2 of books that BX-Books.csv does not have (row 5, 13); "
        "2 with more or fewer than 3 fields (row 6, 7); 1 with quotes out of place (row 8); "
        "2 without a rating from 0 to 10 (row 9, 10); 1 without a user or an ISBN (row 11); "
        "1 with the user and the book of an earlier row (row 12)",
    ]


def test_a_clean_dump_warns_of_nothing_and_a_large_fault_shows_its_first_rows(tmp_path):
    folder = write(tmp_path / "dump", BOOKS[:3], RATINGS[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_book_crossing(folder).interactions.height == 1
    write(folder, BOOKS[:3], RATINGS[:2] + 4 * ['"7";"99";"5"'])
    with pytest.warns(UserWarning, match=r"4 of books that .* \(row 3, 4, 5, \.\.\.\)$"):
        read_book_crossing(folder)


def test_a_broken_row_does_not_take_the_place_of_a_whole_one(tmp_path):
    books = [BOOKS[0], '"01";"";"A";"2000";"P"' + IMAGES, BOOKS[1]]
    ratings = [RATINGS[0], '"12";"01";"none"', RATINGS[1]]
    dataset = read_quietly(write(tmp_path / "dump", books, ratings))
    assert dataset.catalog["title"].to_list() == ["The Owl; a Novel"]
    assert dataset.interactions["rating"].to_list() == [0.0]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text("ab ;,\\\"'|é", min_size=1).filter(str.strip), min_size=1, max_size=5),
    st.lists(st.text('ab;\\"', max_size=7).map('"x;"'.__add__), max_size=5),
)
def test_any_title_comes_back_whatever_broken_lines_stand_before_it(titles, broken):
    escaped = [title.replace("\\", r"\\").replace('"', r"\"") for title in titles]
    books = [f'"{isbn}";"{title}";"A";"2000";"P"{IMAGES}' for isbn, title in enumerate(escaped)]
    with TemporaryDirectory() as folder:
        dump = write(Path(folder), [BOOKS[0], *broken, *books], [RATINGS[0], '"1";"0";"5"'])
        assert read_quietly(dump).catalog["title"].to_list() == titles


def test_without_unrated_interactions_only_the_ratings_stay(tmp_path):
    dataset = read_quietly(write(tmp_path / "dump"))
    assert dataset.explicit().interactions["rating"].to_list() == [10.0, 6.0, 5.0]


def test_reads_the_tables_with_commas(tmp_path):
    (tmp_path / "BX-Books.csv").write_text(
        "ISBN,Book-Title,Book-Author,Year-Of-Publication,Book-Publisher\n"
        '01,"Owl, \\O\\"" and Night",Ann Ash,1999,P\n'
        "02,QuerschÃ\x83?Ã\x82Â¼sse,Bob Birch,1999,P\n",
        encoding="utf-8",
    )
    (tmp_path / "BX-Ratings.csv").write_text(
        "User-ID,ISBN,Book-Rating\n12,02,7\n12,01,3\n", encoding="utf-8"
    )
    dataset = read_book_crossing(tmp_path)
    assert dataset.catalog["title"].to_list() == ['Owl, \\O\\" and Night', "Querschüsse"]
    assert dataset.interactions.select("item", "rating").rows() == [("02", 7.0), ("01", 3.0)]


def test_names_the_files_it_expects(tmp_path):
    with pytest.raises(ValueError, match=r"no Book-Crossing files: BX-Book-Ratings\.csv and BX-B"):
        read_book_crossing(tmp_path)


def test_names_the_columns_it_expects(tmp_path):
    folder = write(tmp_path / "dump", ratings=['"User-ID";"Book-Rating";"ISBN"', '"1";"2";"3"'])
    problem = r"BX-Book-Ratings\.csv, row 1: the first columns must be User-ID, ISBN, Book-Rating"
    with pytest.raises(ValueError, match=problem):
        read_quietly(folder)


def test_a_file_without_a_usable_row(tmp_path):
    folder = write(tmp_path / "dump", books=[BOOKS[0], *BOOKS[4:6]])
    problem = r"BX-Books\.csv: none of its 2 rows can be used: 2 with quotes out of place"
    with pytest.raises(ValueError, match=problem):
        read_book_crossing(folder)
