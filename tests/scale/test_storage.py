import subprocess
import sys

import pytest

from tallrec.scale.jobs import DONE, Tally, finish
from tallrec.scale.storage import Store

DYING = """
import os, sys
from pathlib import Path
from fsspec.implementations.local import LocalFileSystem
from tallrec.scale.storage import Store

url, step = sys.argv[1:]

def die(self, source, target):
    if step == "put_file":  # with the file begun; else with all of it written
        Path(target).touch()
    os._exit(9)

setattr(LocalFileSystem, step, die)
Store.at(url).put_facts("1.json", {"rows": 5, "set_aside": 0})
"""


@pytest.mark.parametrize("step", ["put_file", "mv"])
def test_what_a_killed_writer_left_is_not_counted(tmp_path, step):
    done = Store.at(str(tmp_path)) / DONE
    done.put_facts("0.json", {"rows": 3, "set_aside": 1})
    writer = [sys.executable, "-c", DYING, done.url, step]
    assert subprocess.run(writer, check=False).returncode == 9
    assert len(list((tmp_path / DONE).iterdir())) == 2
    assert done.names() == {"0.json"}
    assert finish(Store.at(str(tmp_path))) == Tally(rows=3, set_aside=1)
