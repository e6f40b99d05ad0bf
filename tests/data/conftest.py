from pathlib import Path

import pytest


@pytest.fixture
def file(tmp_path):
    """Writes a file and returns its path."""

    def write(content: str | bytes, name: str = "own.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write
