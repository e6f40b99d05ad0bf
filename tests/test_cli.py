"""The command line as a user runs it: exit codes, one-line errors, nothing lost."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import polars as pl
import pytest

ROWS = [
    (user, item, 1 + (user * 7 + item * 3) % 5, 100 * item + user)
    for user in range(12)
    for item in range(8)
]


def tallrec(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "tallrec", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "100"},
    )


@pytest.fixture
def table(tmp_path):
    ratings = pl.DataFrame(ROWS, schema=["user", "item", "rating", "timestamp"], orient="row")
    ratings.with_columns(title=pl.format("Film {}", "item")).write_csv(tmp_path / "ratings.csv")
    return tmp_path


def test_prepare_writes_tables_and_audit(table):
    done = tallrec("prepare", "ratings.csv", "--history", 3, "--out", "out", cwd=table)
    assert done.returncode == 0, done.stderr
    assert "| train |" in done.stdout
    names = {path.name for path in (table / "out").iterdir()}
    parts = {"train.parquet", "valid.parquet", "test.parquet"}
    assert names == parts | {
        "catalog.parquet",
        "events.parquet",
        "prepared.json",
        "audit.json",
        "audit.md",
    }
    audit = json.loads((table / "out" / "audit.json").read_text(encoding="utf-8"))
    assert sum(part["rows"] for part in audit["parts"].values()) == 12 * 5


def test_prepare_writes_the_papers_json(table):
    arguments = ("--history", 3, "--out", "out", "--paper-json", "--domain", "movie")
    assert tallrec("prepare", "ratings.csv", *arguments, cwd=table).returncode == 0
    record = json.loads((table / "out/paper/test.json").read_text(encoding="utf-8"))[0]
    assert record.keys() == {"instruction", "input", "output"}
    assert record["output"] in {"Yes.", "No."}


def test_prepare_reads_the_book_crossing_dump_and_says_what_it_leaves_out(tmp_path):
    books = [("ISBN", "Book-Title", "Book-Author"), *((f"b{b}", f"B {b}", "A") for b in range(5))]
    ratings = [("User-ID", "ISBN", "Book-Rating")]
    ratings += [(f"u{user}", f"b{book}", f"{2 * book}") for user in range(9) for book in range(5)]
    for name, rows in (("BX-Books.csv", books), ("BX-Book-Ratings.csv", [*ratings, ("u1", "b1")])):
        lines = (";".join(f'"{field}"' for field in row) for row in rows)
        (tmp_path / name).write_text("\n".join(lines), encoding="latin-1")
    arguments = ("prepare", "book-crossing", "--source", ".", "--min-history", 3)
    for out, options, events in (("rated", (), 36), ("paper", ("--split", "paper"), 45)):
        done = tallrec(*arguments, *options, "--out", out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "Warning: BX-Book-Ratings.csv: 1 of 46 rows are left out: 1 with" in done.stderr
        assert pl.read_parquet(tmp_path / out / "events.parquet").height == events
        audit = json.loads((tmp_path / out / "audit.json").read_text(encoding="utf-8"))
        assert sum(part["rows"] for part in audit["parts"].values()) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare", "book-crossing", "--out", "x"), "give their folder or zip file (--source"),
        (("prepare", "ratings.csv", "--implicit", "--out", "x"), "unrated interactions"),
        (("prepare", "nothing.csv", "--out", "x"), "no data set 'nothing.csv'"),
        (("prepare", "ratings.csv", "--rating", "stars", "--out", "x"), "no column 'stars'"),
        (("prepare", "ratings.csv", "--split", "random", "--out", "x"), "split must be one of"),
        (("prepare", "ratings.csv", "--history", "50", "--out", "x"), "give a smaller --history"),
        (("prepare", "ratings.csv", "--split", "paper", "--history", "3", "--out", "x"), "10,000"),
        (("tune", "demmo", "--out", "x"), "there is no recipe 'demmo'"),
        (("tune", "demo", "--data", ".", "--out", "x"), "not a prepared folder"),
        (
            ("tune", "demo", "--set", "stages.0.lr=1", "--out", "x"),
            "stages.0.lr: there is no such key",
        ),
        (("evaluate", "."), "not a run directory"),
        (("recommend", "nowhere", "--user", "1"), "nowhere is not a run directory"),
        (("recommend", "run"), "give either --user, or titles with --likes and --dislikes"),
        (("score", "run", "--table", "a", "--part", "test", "--out", "x"), "either --table or"),
        (("compare", "."), "has no report yet"),
        (("assets", "fetch", "gpt-5"), "gpt-5"),
        (("tune",), "Missing argument"),
    ],
)
def test_a_mistake_ends_in_one_line_and_exit_code_2(table, arguments, message):
    done = tallrec(*arguments, cwd=table)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()[-1]) < 400


def test_prepare_does_not_overwrite(table):
    arguments = ("prepare", "ratings.csv", "--history", 3, "--out", "out")
    assert tallrec(*arguments, cwd=table).returncode == 0
    before = (table / "out" / "prepared.json").read_bytes()
    again = tallrec(*arguments, cwd=table)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert (table / "out" / "prepared.json").read_bytes() == before


def test_a_changed_table_is_noticed(table):
    assert (
        tallrec("prepare", "ratings.csv", "--history", 3, "--out", "out", cwd=table).returncode == 0
    )
    path = table / "out" / "test.parquet"
    pl.read_parquet(path).head(3).write_parquet(path)
    done = tallrec("tune", "demo", "--data", "out", "--out", "run", cwd=table)
    assert done.returncode == 2
    assert "was changed since it was prepared" in done.stderr


def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(table, tiny_folder):
    prepared = tallrec("prepare", "ratings.csv", "--history", 3, "--out", "data", cwd=table)
    assert prepared.returncode == 0
    arguments = [sys.executable, "-m", "tallrec", "tune", "demo", "--data", "data", "--out", "run"]
    arguments += ["--backbone", str(tiny_folder), "--shots", "16", "--set", "stages.0.epochs=40"]
    process = subprocess.Popen(arguments, cwd=table, stderr=subprocess.PIPE, text=True)
    checkpoints = table / "run" / "seed-0" / "checkpoints"
    wait_until(lambda: list(checkpoints.glob("checkpoint-*/trainer_state.json")))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (
        "This goes on from the last checkpoint:\n  tallrec tune demo --data data --out run" in said
    )
    assert "Traceback" not in said
    assert not (table / "run" / "seed-0" / "adapter").exists()
    assert subprocess.run(arguments, cwd=table, check=False).returncode == 0
    steps = [json.loads(line)["step"] for line in (table / "run/seed-0/metrics.jsonl").open()]
    assert steps == list(range(1, len(steps) + 1))


def wait_until(happened, seconds=120):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_a_run_from_recipe_to_removal(table, tiny_folder):
    prepared = tallrec("prepare", "ratings.csv", "--history", 3, "--out", "data", cwd=table)
    assert prepared.returncode == 0
    settings = [f"backbone.source={tiny_folder}", "shots.count=8", "evaluation.resamples=200"]
    command = ["run", "demo", "--data", "data", "--out", "runs/a"]
    command += [word for setting in settings for word in ("--set", setting)]
    first = tallrec(*command, cwd=table)
    assert first.returncode == 0, first.stderr
    again = tallrec(*command, cwd=table)
    assert "is finished: nothing was computed again" in again.stderr
    assert again.stdout == first.stdout
    others = ("--history", 2, "--out", "others")
    assert tallrec("prepare", "ratings.csv", *others, cwd=table).returncode == 0
    refused = tallrec(*("others" if word == "data" else word for word in command), cwd=table)
    assert refused.returncode == 2
    assert "runs/a was begun on other data than others: give another --out" in refused.stderr
    listed = tallrec("runs", "list", cwd=table).stdout
    assert "runs/a" in listed
    assert "evaluated" in listed
    record = tallrec("runs", "show", "runs/a", cwd=table).stdout
    repeat = next(line for line in record.splitlines() if line.startswith("repeat = "))
    words = shlex.split(repeat.removeprefix("repeat = ")[1:-1])
    assert words[:2] == ["tallrec", "run"]
    assert tallrec(*words[1:], cwd=table).returncode == 0
    weights = "seed-0/adapter/adapter_model.safetensors"
    repeated = (table / "runs/a-again" / weights).read_bytes()
    assert repeated == (table / "runs/a" / weights).read_bytes()
    assert "a-again" in tallrec("runs", "compare", "runs/a", "runs/a-again", cwd=table).stdout
    assert tallrec("runs", "rm", "runs/a", cwd=table).returncode == 1  # nobody says yes
    assert (table / "runs" / "a").exists()
    assert tallrec("runs", "rm", "runs/a", "--yes", cwd=table).returncode == 0
    assert not (table / "runs" / "a").exists()
    assert tallrec("runs", "rm", "data", "--yes", cwd=table).returncode == 2
    assert (table / "data" / "prepared.json").exists()


def test_a_recipe_is_shown_and_checked(table):
    shown = tallrec("recipe", "show", "demo", "--set", "seeds=[3]", cwd=table)
    (table / "mine.toml").write_text(shown.stdout, encoding="utf-8")
    assert tallrec("recipe", "check", "mine.toml", cwd=table).returncode == 0
    assert tallrec("recipe", "show", "mine.toml", cwd=table).stdout == shown.stdout
    assert "two-stages" in tallrec("recipe", "list", cwd=table).stdout
    missing = tallrec("recipe", "check", "two-stages", cwd=table)
    assert missing.returncode == 2
    assert "stages.0.source: there is no file or folder" in missing.stderr
