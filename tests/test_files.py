import hashlib

import pytest

from tallrec.files import sha256, whole_folder, write_atomically


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder"

    def fail_half_way():
        with whole_folder(path) as partial:
            (partial / "half").write_text("x", encoding="utf-8")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    for content in ("one", "two"):
        with whole_folder(path) as partial:
            (partial / "file").write_text(content, encoding="utf-8")
    assert (path / "file").read_text(encoding="utf-8") == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"content").hexdigest()
