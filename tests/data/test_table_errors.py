import gzip
import re
from pathlib import Path

import polars as pl
import pytest

from tallrec.data.table import read_table
from tests.data.tables import HEAD, NUMBERS, ROWS

VALUES = {
    "u,c,good,7,Cat\nu,c,bad,7,Cat\n": (
        "row 5, column 'rating': 'good' is not a finite number; ratings look like 4 or 3.5 "
        "(2 rows like this)"
    ),
    'u,c,"4,5",7,Cat\n': "row 5, column 'rating': '4,5' is not a finite number",
    "u,c,nan,7,Cat\n": "row 5, column 'rating': 'nan' is not a finite number",
    "u,c,-inf,7,Cat\n": "row 5, column 'rating': '-inf' is not a finite number",
    "u,c,1e300,7,Cat\n": "row 5, column 'rating': '1e300' is not a finite number",
    "u,c,,7,Cat\n": "row 5, column 'rating': nothing is there; ratings look like",
    "u,c\n": "row 5, column 'rating': nothing is there",
    ",c,3,7,Cat\n": "row 5, column 'user': nothing is there; every row needs its user's id",
    'u,"",3,7,Cat\n': "row 5, column 'item': nothing is there; every row needs its item's id",
    "\n\nu,c,x,7,Cat\n": "row 7, column 'rating': 'x'",
    'u,"b\nb",3,7,"C\n\nD"\nu,c,x,7,Cat\n': "row 9, column 'rating': 'x'",
    "u,c,3,soon,Cat\n": (
        "row 5, column 'timestamp': 'soon' is no time, or not written like the first one, '100'; "
        "times are seconds since 1970 or dates such as 2024-05-31T12:30:00; all or none"
    ),
    "u,c,3,2020-01-01,Cat\n": "row 5, column 'timestamp': '2020-01-01' is no time, or not written",
    "u,c,3,nan,Cat\n": "row 5, column 'timestamp': 'nan' is no time",
    "u,c,3,,Cat\n": "row 5, column 'timestamp': nothing is there",
    "u,c,3,7,\nv,c,3,7, \n": (
        "row 5, column 'title': nothing is there; every item needs a title in one of its rows "
        "(2 rows like this)"
    ),
    "u,c,3,7,Cat,5\n": "row 5 has 6 columns where row 1 has 5: is there a ',' in a field",
    'u,c,3,7,"Cat" Five\n': "row 5: broken quotes (',' expected after '\"')",
    'u,"c,3,7,Cat\nu,d,3,7,Dog\n': "row 5: broken quotes (unexpected end of data)",
}
OPTIONS = [
    ({"columns": {"user": "uid"}}, "own.csv has no column 'uid' (--user); its columns are 'user',"),
    ({"columns": {"usr": "user"}}, "columns can be given for user, item, rating, timestamp"),
    ({"columns": {"title": ""}}, "which column holds the titles? Give --title, or a second file"),
    ({"columns": {"rating": ""}}, "own.csv: which column holds the ratings? Give --rating; its"),
    ({"header": False}, "which column holds the users? Give --user; its columns are '1', '2',"),
    ({"header": False, "columns": {"user": "9"}}, "own.csv has no column '9' (--user)"),
    ({"separator": ";"}, "if ',' separates columns, give it as --separator"),
    ({"encoding": "utf-99"}, "'utf-99' is no text encoding (--encoding): try utf-8, latin-1,"),
    ({"encoding": "hex"}, "'hex' is no text encoding"),
    ({"items_id": "x"}, "give that file as --items"),
]
FILES = [
    ("own.csv", "", "own.csv is empty"),
    ("own.csv", HEAD, "own.csv has no rows of data"),
    ("own.csv", HEAD + "\n\n", "own.csv has only blank rows"),
    ("own.csv", "\n" + HEAD + ROWS, "own.csv, row 1 is blank"),
    ("own.csv", "user,item,rating,title,title\nu,a,3,A,B\n", "has 2 columns called 'title'"),
    ("own.txt", HEAD.replace(",", "::"), "give --separator, for example '::'"),
    ("own.xlsx", HEAD, "files are text (.csv, .tsv, .txt, .dat), JSON lines (.jsonl, .ndjson) or"),
    ("own.csv.gz", HEAD, "own.csv.gz is not a whole gzip file"),
    (
        "own.csv.gz",
        gzip.compress(HEAD.encode(), mtime=0)[:-9],
        "own.csv.gz is not a whole gzip file",
    ),
    ("own.parquet", "text", "own.parquet cannot be read"),
    ("own.jsonl", '{"user": 1}\n\n{"user":\n', "own.jsonl, row 3 is not JSON"),
    ("own.jsonl", "[1, 2]\n", "own.jsonl, row 1 is not a JSON object such as"),
    ("own.jsonl", '{"user": 1}\n', "which column holds the items? Give --item; its only column"),
    ("own.jsonl", "{}\n", "which column holds the users? Give --user; its columns are none"),
]
ITEMS = {
    "a,Ant\n": "own.csv, row 3, column 'item': 'b' has no title in {items}; add the item there or",
    "a,Ant\nb,Bee\na,Aunt\n": "items.csv, row 4, column 'item': 'a' is the id of row 2 too; ids",
    "a,Ant\nb, \n": "items.csv, row 3, column 'title': nothing is there; every item needs a title",
    "a,Ant\n,Bee\n": "items.csv, row 3, column 'item': nothing is there",
    "": "items.csv has no rows of data",
}


class TestErrors:
    @pytest.mark.parametrize("row", VALUES)
    def test_values_are_named_by_row_and_column(self, file, row) -> None:
        path = file(HEAD + ROWS + row)
        with pytest.raises(ValueError, match=re.escape(f"{path}, {VALUES[row]}")):
            read_table(path)

    @pytest.mark.parametrize(("options", "message"), OPTIONS)
    def test_options(self, file, options, message) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            read_table(file(HEAD + ROWS), **options)

    @pytest.mark.parametrize(("name", "content", "message"), FILES)
    def test_files(self, file, name, content, message) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            read_table(file(content, name))

    @pytest.mark.parametrize("rows", ITEMS)
    def test_items(self, file, rows) -> None:
        items = file("item,title\n" + rows, "items.csv")
        with pytest.raises(ValueError, match=re.escape(ITEMS[rows].format(items=items))):
            read_table(file(HEAD + ROWS), items=items)

    def test_no_file(self, tmp_path) -> None:
        with pytest.raises(ValueError, match="no file nowhere"):
            read_table(Path("nowhere"))
        with pytest.raises(ValueError, match="is a folder, not a file"):
            read_table(tmp_path)

    def test_items_without_the_column_of_ids(self, file) -> None:
        items = file("ISBN,title\na,Ant\n", "items.csv")
        with pytest.raises(ValueError, match=r"which column holds the items\? Give --items-id"):
            read_table(file(HEAD + ROWS), items=items)

    def test_rows_count_the_header_only_if_there_is_one(self, file) -> None:
        path = file(ROWS + "u,c,x,7,Cat\n")
        with pytest.raises(ValueError, match=r"row 4, column '3': 'x' is not a finite number"):
            read_table(path, header=False, columns=NUMBERS)

    @pytest.mark.parametrize("bad", [float("nan"), None])
    def test_parquet_rows_are_counted_from_one(self, tmp_path, bad) -> None:
        frame = pl.DataFrame({"user": [1, 2], "item": 1, "rating": [0.5, bad], "title": "A"})
        frame.write_parquet(tmp_path / "own.parquet")
        with pytest.raises(ValueError, match=r"own\.parquet, row 2, column 'rating': n"):
            read_table(tmp_path / "own.parquet")

    def test_json_rows_are_lines(self, file) -> None:
        good = '{"user": "u", "item": "a", "rating": 1, "title": "Ant"}\n'
        with pytest.raises(ValueError, match=r"own\.jsonl, row 3, column 'rating': 'x' is not a"):
            read_table(file(good + "\n" + good.replace("1", '"x"'), "own.jsonl"))

    def test_long_separator(self, file) -> None:
        rows = (HEAD + ROWS).replace(",", "::")
        with pytest.raises(ValueError, match="row 5 has 6 columns where row 1 has 5: is there a s"):
            read_table(file(rows + "u::c::3::7::Cat::5\n", "own.dat"), separator="::")
        with pytest.raises(ValueError, match=r"row 5 has a control character, U\+001F"):
            read_table(file(rows + "u::c::3::7::Cat\x1f\n", "own.dat"), separator="::")


class TestEncodings:
    @pytest.mark.parametrize("name", ["own.csv", "own.csv.gz"])
    @pytest.mark.parametrize("last", ["u,c,3,7,Café", "u,c,3,7,Café\nu,d,3,7,Thé\n"])
    def test_names_byte_and_row(self, file, name, last) -> None:
        content = (HEAD + ROWS + last).encode("latin-1")
        content = gzip.compress(content, mtime=0) if name.endswith("gz") else content
        at = len(HEAD + ROWS) + last.index("é")
        message = rf"row 5: byte {at} \(0xe9\) is not utf-8; .*--encoding latin-1"
        with pytest.raises(ValueError, match=message):
            read_table(file(content, name))
        assert read_table(file(content, name), encoding="latin-1").catalog["title"][2] == "Café"

    def test_header_json_and_declared_encodings(self, file) -> None:
        with pytest.raises(ValueError, match=r"row 1: byte 2 \(0xe9\) is not utf-8"):
            read_table(file(("Usér," + HEAD).encode("latin-1")))
        with pytest.raises(ValueError, match=r"own\.jsonl, row 1: byte 10 \(0xe9\) is not utf-8"):
            read_table(file('{"user": "é"}\n'.encode("latin-1"), "own.jsonl"))
        with pytest.raises(ValueError, match=r"row 5: byte \d+ \(0xc3\) is not ascii"):
            read_table(file(HEAD + ROWS + "u,c,3,7,Café\n"), encoding="ascii")

    def test_unknown_encoding_of_a_text_with_unknown_separator(self, file) -> None:
        with pytest.raises(ValueError, match="'utf-99' is no text encoding"):
            read_table(file(HEAD, "own.txt"), encoding="utf-99")

    def test_suggests_utf_16_where_its_mark_is(self, file) -> None:
        with pytest.raises(ValueError, match=r"row 1: byte 0 \(0xff\).*--encoding utf-16"):
            read_table(file((HEAD + ROWS).encode("utf-16")))

    def test_far_into_a_large_file(self, file, monkeypatch) -> None:
        monkeypatch.setattr("tallrec.data.text._PIECE", 7)
        dataset = read_table(file((HEAD + ROWS).replace(",", "::"), "own.dat"), separator="::")
        assert dataset.catalog["title"].to_list() == ["Ant", "Bee"]
        content = (HEAD + ROWS + "u,é€,3,7,Café\n").encode()[:-2]
        with pytest.raises(ValueError, match=rf"row 5: byte {len(content) - 1} \(0xc3\)"):
            read_table(file(content))
