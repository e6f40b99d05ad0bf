import pytest

from tallrec.baselines.journal import Journal, Reply

REPLIES = [
    Reply("a", "Yes.", None, "stop", [("Yes", -0.5), (" \u2028\n", -2.0)], "m", 10, 2, retries=1),
    Reply("b", "", "I won't.", "stop", None, None, None, None),
]


@pytest.fixture
def path(tmp_path):
    journal = Journal(tmp_path / "answers.jsonl")
    for reply in REPLIES:
        journal.add(reply)
    return tmp_path / "answers.jsonl"


def test_what_is_added_is_there_again(path):
    journal = Journal(path)
    assert len(journal) == 2
    assert [journal[key] for key in "ab"] == REPLIES
    assert "c" not in journal


@pytest.mark.parametrize("cut", [1, 30])
def test_a_line_that_was_cut_off_is_written_again(path, cut):
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    journal = Journal(path)
    assert "a" in journal
    assert "b" not in journal
    journal.add(REPLIES[1])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"not JSON", b'{"key": "a"}', b"[]"])
def test_another_damaged_line_is_named(path, damage):
    first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join((first, damage, second)) + b"\n")
    with pytest.raises(ValueError, match=r"answers.jsonl is damaged in line 2"):
        Journal(path)
