"""Ray is an engine for those who ask for it."""

import subprocess
import sys

import polars as pl
import pytest

from tallrec.cli import app
from tallrec.scale.buckets import bucket_of
from tallrec.scale.cluster import ClusterOptions, connected


def test_nothing_imports_ray_unless_asked():
    code = (
        "import sys, tallrec.cli, tallrec.steps.score_on_ray, tallrec.steps.prepare_on_ray;"
        "import tallrec.scale.workers; sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_ray_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ValueError, match=r"needs Ray: pip install 'tallrec\[ray\]'"),
        connected(ClusterOptions()),
    ):
        pass


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("score run --table t --out o --engine spark", "engine for many machines is ray"),
        ("score run --out o --engine ray", "--engine ray scores a --table"),
        ("score run --table t --out o --engine ray --workers 0", "workers must be at least 1"),
        ("score run --table t --out o --workers 2", "--address and --workers are for --engine ray"),
        ("score run --table t --out o --model m", "--model is for --engine ray"),
        ("prepare t --out o --address a", "--address and --workers are for --engine ray"),
        ("prepare movielens-100k --out o --engine ray", "prepares a table of interactions"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        app(words.split(), standalone_mode=False)


def test_a_user_is_in_the_same_bucket_on_every_machine():
    ids = pl.Series(["123456789", "u1", None, "u1", "ü"])
    # CRC-32 of "123456789" is 0xCBF43926 by the standard.
    assert bucket_of(ids, 2**32 - 1)[0] == 0xCBF43926
    assert bucket_of(ids, 64)[0] == 0xCBF43926 % 64
    assert bucket_of(ids, 64)[1] == bucket_of(ids, 64)[3]
    assert bucket_of(ids, 64)[2] == 0
