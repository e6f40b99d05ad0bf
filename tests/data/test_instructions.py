"""Instruction records: every way they are stored, and what is wrong with one."""

import json

import polars as pl
import pytest

from tallrec.data.instructions import read_instructions
from tallrec.types import Instruction

RECORDS = [
    {"instruction": "Name a colour.", "input": "", "output": "Blue"},
    {"instruction": "Add.", "input": "1, 2", "output": "3", "category": "sums"},
    {"instruction": "Say nothing.", "input": "", "output": " "},
]
WANTED = [Instruction("Name a colour.", "", "Blue"), Instruction("Add.", "1, 2", "3")]


def as_list(path):
    path.write_text(json.dumps(RECORDS), encoding="utf-8")


def as_lines(path):
    path.write_text("\n\n".join(json.dumps(r) for r in RECORDS) + "\n", encoding="utf-8")


def as_parquet(path):
    pl.DataFrame(RECORDS).write_parquet(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.json", as_list),
        ("lines.json", as_lines),
        ("a.JSONL", as_lines),
        ("a.ndjson", as_lines),
        ("a.parquet", as_parquet),
    ],
)
def test_every_format_gives_the_records_that_have_an_output(tmp_path, name, write):
    write(tmp_path / name)
    assert read_instructions(tmp_path / name) == WANTED


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(RECORDS), encoding="utf-8-sig")
    assert read_instructions(tmp_path / "a.json") == WANTED


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    (tmp_path / "train").mkdir()
    as_lines(tmp_path / "train" / "b.jsonl")
    as_list(tmp_path / "train" / "a.json")
    (tmp_path / "README.md").write_text("words")
    assert read_instructions(tmp_path) == WANTED + WANTED


def test_input_may_be_missing_or_null(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"instruction": "a", "output": "b"}]')
    assert read_instructions(path) == [Instruction("a", "", "b")]
    path.write_text('[{"instruction": "a", "input": null, "output": "b"}]')
    assert read_instructions(path) == [Instruction("a", "", "b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"instruction": "a"}]', r"record 1 has no 'output' \(it has instruction\)"),
        ('[{"instruction": "a", "output": 3}]', "record 1: 'output' is not text but 3"),
        ('[{"instruction": " ", "output": "b"}]', "record 1 has an empty 'instruction'"),
        ('["a"]', "record 1 is not an object such as"),
        ("[]", "holds no record with an output"),
        ('"a"', "does not hold a list of records"),
        ("[\n{]", "line 2 is not JSON"),
        ('{"instruction": "a", "output": "b"}\n{', "row 2 is not JSON"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_instructions(path)
    assert str(path) in str(error.value)


def test_files_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no file or folder"):
        read_instructions(tmp_path / "none.json")
    (tmp_path / "a.csv").write_text("instruction,output")
    with pytest.raises(ValueError, match=r"a\.csv is none of \.json, \.jsonl"):
        read_instructions(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"holds no \.json, \.jsonl"):
        read_instructions(tmp_path)
    (tmp_path / "a.json").write_bytes(b'[{"instruction": "\xff"}]')
    with pytest.raises(ValueError, match="is not UTF-8: byte 19"):
        read_instructions(tmp_path / "a.json")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"a\.parquet is not Parquet"):
        read_instructions(tmp_path / "a.parquet")
