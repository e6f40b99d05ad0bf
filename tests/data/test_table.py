import csv
import gzip
import io
import json
import re
from datetime import UTC, date, datetime

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallrec.data.table import read_table
from tests.data.tables import HEAD, NUMBERS, ROWS

INTERACTIONS = [("u2", "a", 4.0, 100), ("u1", "b", 3.5, 50), ("u2", "b", 1.0, 70)]
CATALOG = [("a", "Ant", None), ("b", "Bee", None)]


def check(dataset) -> None:
    assert dataset.interactions.rows() == INTERACTIONS
    assert dataset.catalog.rows() == CATALOG
    assert dict(dataset.interactions.schema) == {
        "user": pl.Enum(["u2", "u1"]),
        "item": pl.Enum(["a", "b"]),
        "rating": pl.Float32,
        "timestamp": pl.Int64,
    }


class TestFormats:
    @pytest.mark.parametrize(
        ("name", "mark", "options"),
        [
            ("own.csv", ",", {}),
            ("own.CSV", ";", {"separator": ";"}),
            ("own.tsv", "\t", {}),
            ("own.txt", "\t", {"separator": "\\t"}),
            ("own.dat", "::", {"separator": "::"}),
            ("own.log", "§", {"separator": "§"}),
            ("own.csv", ",", {"encoding": "utf-16"}),
            ("own.csv", ",", {"encoding": "utf-8-sig"}),
            ("own.dat", "||", {"encoding": "cp1252", "separator": "||"}),
        ],
    )
    def test_text(self, file, name, mark, options) -> None:
        content = (HEAD + ROWS).replace(",", mark).encode(options.get("encoding", "utf-8"))
        check(read_table(file(content, name), **options))
        check(read_table(file(gzip.compress(content), name + ".gz"), **options))

    def test_byte_order_mark_is_no_part_of_the_first_column(self, file) -> None:
        check(read_table(file((HEAD + ROWS).encode("utf-8-sig"))))
        dated = ROWS.encode("utf-8-sig")
        check(read_table(file(dated), header=False, columns=NUMBERS))

    def test_windows_line_ends_and_blank_lines(self, file) -> None:
        content = (HEAD + "\n" + ROWS.replace("\n", "\n\n") + "\n").replace("\n", "\r\n")
        check(read_table(file(content)))

    def test_without_header(self, file) -> None:
        check(read_table(file(ROWS), header=False, columns=NUMBERS))

    def test_json_lines(self, file) -> None:
        keys = HEAD.strip().split(",")
        records = [dict(zip(keys, row.split(","), strict=True)) for row in ROWS.splitlines()]
        records[0] |= {"rating": 4, "timestamp": 100, "more": [1, {}]}
        lines = "\n\n".join(json.dumps(record) for record in records)
        check(read_table(file(lines, "own.jsonl")))
        check(read_table(file(lines.encode("utf-16"), "own.ndjson"), encoding="utf-16"))

    def test_parquet(self, tmp_path) -> None:
        frame = pl.read_csv(io.StringIO(HEAD + ROWS))
        frame.write_parquet(tmp_path / "own.parquet")
        check(read_table(tmp_path / "own.parquet"))

    def test_numbers_as_ids(self, tmp_path) -> None:
        frame = pl.DataFrame(
            {"user": [9, 7], "item": [0, 1], "rating": [0, 5], "title": ["A", "B"]}
        )
        frame.write_parquet(tmp_path / "own.parquet")
        dataset = read_table(tmp_path / "own.parquet")
        assert dataset.interactions.rows() == [("9", "0", 0.0, None), ("7", "1", 5.0, None)]


class TestColumns:
    def test_mapping(self, file) -> None:
        renamed = "who,what,stars,when,called\n" + ROWS
        columns = {
            "user": "who",
            "item": "what",
            "rating": "stars",
            "timestamp": "when",
            "title": "called",
        }
        dataset = read_table(file(renamed), columns=columns, domain="insect")
        check(dataset)
        assert (dataset.name, dataset.domain) == ("own", "insect")

    def test_columns_that_are_not_used_may_be_anything(self, file) -> None:
        content = 'x,user_id,item_id,rating,title,x,,\nold,u,i,3,T,"a,b",,\n,v,i,3,T,nan,,\n'
        dataset = read_table(file(content), name="mine")
        assert dataset.interactions.rows() == [("u", "i", 3.0, None), ("v", "i", 3.0, None)]
        assert dataset.name == "mine"

    def test_second_file_has_the_titles_and_keeps_items_nobody_rated(self, file) -> None:
        items = file("ISBN,title,creator\nc,Cat,Colette\nb,Bee,\na,Ant,Asimov\n", "items.csv")
        dataset = read_table(file(HEAD + ROWS), items=items, items_id="ISBN")
        assert dataset.catalog.rows() == [
            ("c", "Cat", "Colette"),
            ("b", "Bee", None),
            ("a", "Ant", "Asimov"),
        ]
        assert dataset.interactions.rows() == INTERACTIONS
        assert dataset.interactions["item"].to_physical().to_list() == [2, 1, 1]

    def test_second_file_without_header(self, file) -> None:
        items = file("a::Ant\nb::Bee\n", "items.dat")
        ratings = file(ROWS.replace(",", "::"), "ratings.dat")
        columns = {"user": "1", "item": "2", "rating": "3", "timestamp": "4", "title": "2"}
        options = {"separator": "::", "header": False, "items": items, "items_id": "1"}
        check(read_table(ratings, columns=columns, **options))

    def test_first_title_and_creator_of_an_item_count(self, file) -> None:
        content = "user,item,rating,title,creator\nu,a,1, ,\nu,a,2,Ant,\nv,a,3,Ants,Asimov\n"
        with pytest.warns(UserWarning, match="1 items have several titles, for example item 'a'"):
            dataset = read_table(file(content))
        assert dataset.catalog.rows() == [("a", "Ant", "Asimov")]


class TestTimes:
    @pytest.mark.parametrize(
        ("written", "seconds"),
        [
            ("881250949", 881250949),
            (" 12 ", 12),
            ("-1", -1),
            ("1.6e9", 1_600_000_000),
            ("10.9", 10),
            ("2020-01-01", 1577836800),
            ("2020-01-01 00:01", 1577836860),
            ("2020-01-01T00:00:01.75", 1577836801),
            ("2020-01-01T00:00:00Z", 1577836800),
            ("2020-01-01 02:00:00+02:00", 1577836800),
            ("", None),
        ],
    )
    def test_text(self, file, written, seconds) -> None:
        dataset = read_table(file(f"{HEAD}u,a,1,{written},Ant\n"))
        assert dataset.interactions["timestamp"].to_list() == [seconds]

    @pytest.mark.parametrize(
        "moment", [date(2020, 1, 1), datetime(2020, 1, 1), datetime(2020, 1, 1, tzinfo=UTC)]
    )
    def test_parquet(self, tmp_path, moment) -> None:
        frame = pl.DataFrame({"user": 1, "item": 1, "rating": 1, "title": "A", "timestamp": moment})
        frame.write_parquet(tmp_path / "own.parquet")
        dataset = read_table(tmp_path / "own.parquet")
        assert dataset.interactions["timestamp"].to_list() == [1577836800]

    def test_a_column_can_be_left_out(self, file) -> None:
        path = file(HEAD + ROWS + "u2,b,1,soon,Bee\n")
        dataset = read_table(path, columns={"timestamp": ""})
        assert dataset.interactions["timestamp"].null_count() == 4


VISIBLE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: re.search(r"\w", text)
)
ANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def as_csv(rows: list[list[str]], mark: str, line_end: str) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=mark, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerows(rows)
    return text.getvalue()


class TestRoundTrips:
    @ANY
    @given(
        st.dictionaries(VISIBLE, VISIBLE, min_size=1),
        st.sampled_from([",", ";", "\t", "|"]),
        st.sampled_from(["\n", "\r\n"]),
        st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    )
    def test_any_text_as_id_and_title(self, tmp_path, titles, mark, line_end, encoding) -> None:
        rows = [[title, item, "3", title] for item, title in titles.items()]
        text = as_csv([["user", "item", "rating", "title"], *rows], mark, line_end)
        path = tmp_path / "own.csv"
        path.write_bytes(text.encode(encoding))
        dataset = read_table(path, separator=mark, encoding=encoding)
        assert dict(dataset.catalog.select("item", "title").iter_rows()) == titles
        assert dataset.interactions["user"].to_list() == list(titles.values())

    @ANY
    @given(st.lists(VISIBLE, min_size=1, max_size=8), st.data())
    def test_a_bad_row_is_named_as_an_editor_counts(self, tmp_path, titles, data) -> None:
        titles = [title.replace("\r", "\n") for title in titles]
        bad = data.draw(st.integers(0, len(titles) - 1))
        rows = [["u", str(i), "x" if i == bad else "3", t] for i, t in enumerate(titles)]
        head = ["user", "item", "rating", "title"]
        path = tmp_path / "own.csv"
        path.write_bytes(as_csv([head, *rows], ",", "\n").encode())
        row = as_csv([head, *rows[:bad]], ",", "\n").count("\n") + 1
        with pytest.raises(ValueError, match=rf"own\.csv, row {row}, column 'rating': 'x'"):
            read_table(path)
