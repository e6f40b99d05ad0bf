"""What users said is kept, given back, deleted, and becomes samples; in SQLite and PostgreSQL."""

import multiprocessing
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tallrec.data.prepared import read_prepared
from tallrec.serve.feedback import FeedbackStore
from tallrec.types import Item
from tests.serve.databases import postgres

ITEMS = [Item(f"i{n}", f"Sea {n}", "Ada" if n % 2 else None) for n in range(6)]


@pytest.fixture(scope="module")
def server():
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """An empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'feedback.db'}"
        return
    url = request.getfixturevalue("server")
    yield url
    import psycopg

    with psycopg.connect(url) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


@pytest.fixture
def store(url):
    store = FeedbackStore(url)
    store.keep_items(ITEMS, "movie")
    yield store
    store.close()


def said(store, user):
    return [(item, liked) for item, _, liked, _ in store.of_user(user)]


def test_a_user_gets_back_what_they_said_in_order(store):
    store.add("ann", [("i3", True)])
    store.add("bob", [("i3", False)])
    store.add("ann", [("i1", False), ("i2", True)])
    assert said(store, "ann") == [("i3", True), ("i1", False), ("i2", True)]
    assert store.of_user("ann")[0].title == "Sea 3"
    assert said(store, "nobody") == []


def test_the_last_word_on_an_item_counts(store):
    store.add("ann", [("i1", True), ("i2", True)])
    store.add("ann", [("i1", True), ("i1", False)])
    assert said(store, "ann") == [("i2", True), ("i1", False)]


def test_all_of_a_call_is_stored_or_nothing(store):
    from sqlalchemy.exc import IntegrityError

    with pytest.raises(IntegrityError) as caught:
        store.add("ann", [("i1", True), ("unknown", True)])
    assert said(store, "ann") == []
    assert "ann" not in str(caught.value)  # it may be logged


def test_deleting_a_user_leaves_the_others(store):
    store.add("ann", [("i1", True), ("i2", False)])
    store.add("bob", [("i1", True)])
    assert store.delete_user("ann") == 2
    assert (said(store, "ann"), said(store, "bob")) == ([], [("i1", True)])
    assert store.delete_user("ann") == 0


def test_a_store_opens_again_and_titles_follow_the_catalogue(store, url):
    store.add("ann", [("i1", True)])
    again = FeedbackStore(url)
    again.keep_items([Item("i1", "Sea 1, restored")], "movie")
    assert again.of_user("ann")[0].title == "Sea 1, restored"
    with pytest.raises(ValueError, match="holds feedback on movies, and this run is about books"):
        again.keep_items(ITEMS, "book")
    again.close()


def test_the_tables_are_those_of_the_migrations(url):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine

    from tallrec.serve.tables import METADATA

    FeedbackStore(url).close()
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


def test_feedback_becomes_interactions(store):
    with pytest.raises(ValueError, match="holds no feedback yet"):
        store.dataset()
    store.add("bob", [("i2", True), ("i0", False)])
    store.add("ann", [("i2", False)])
    dataset = store.dataset()
    assert dataset.domain == "movie"
    assert dataset.catalog.rows() == [tuple(item) for item in ITEMS]
    rows = dataset.interactions.select("user", "item", "rating").rows()
    assert rows == [("bob", "i2", 1.0), ("bob", "i0", 0.0), ("ann", "i2", 0.0)]


def test_many_writers_at_once_lose_nothing(store, url):
    other = FeedbackStore(url)

    def write(n):
        (store if n % 2 else other).add(f"u{n}", [("i1", True), ("i2", False)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    other.close()
    assert store.dataset().interactions.height == 80


def keep_writing(url, sending):
    store = FeedbackStore(url)
    for n in range(100_000):
        store.add(f"u{n}", [("i1", True)])
        sending.send(n)


def test_what_was_acknowledged_survives_a_kill(store, url):
    for acknowledged in (3, 25):
        receiving, sending = multiprocessing.get_context("spawn").Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=keep_writing, args=(url, sending)
        )
        process.start()
        for _ in range(acknowledged):
            assert receiving.poll(120)
            last = receiving.recv()
        process.kill()
        while receiving.poll():
            last = receiving.recv()
        process.join()
        assert all(said(store, f"u{n}") == [("i1", True)] for n in range(last + 1))


def test_deleted_feedback_is_not_left_in_the_files(tmp_path):
    store = FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}")
    store.keep_items(ITEMS, "movie")
    store.add("a-name-to-forget", [("i1", True)])

    def found():
        return [p.name for p in tmp_path.iterdir() if b"a-name-to-forget" in p.read_bytes()]

    assert found()
    store.delete_user("a-name-to-forget")
    assert not found()
    store.close()


def test_a_store_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "feedback.db"
    FeedbackStore(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(ValueError, match="made by another version of tallrec"):
        FeedbackStore(f"sqlite:///{path}")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("feedback.db", "kept in SQLite or PostgreSQL"),
        ("mysql://localhost/x", "kept in SQLite or PostgreSQL"),
        ("sqlite://", "needs a file"),
        ("sqlite:///no/such/folder/feedback.db", "there is no folder"),
        ("sqlite:///pyproject.toml", "pyproject.toml cannot be used: file is not a database"),
        ("postgresql://me:secret@/x?host=/nowhere", r"me:\*\*\*@/x\S* cannot be used: "),
    ],
)
def test_a_wrong_url_is_refused(url, message):
    with pytest.raises(ValueError, match=message) as caught:
        FeedbackStore(url)
    assert "secret" not in str(caught.value)


def test_prepare_makes_samples_of_feedback(tmp_path):
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    store = FeedbackStore(url)
    store.keep_items(ITEMS, "movie")
    for n in range(8):
        store.add(f"u{n}", [(item.id, i % 2 == n % 2) for i, item in enumerate(ITEMS)])
    store.close()
    command = [sys.executable, "-m", "tallrec", "prepare", "--from-feedback", url]
    options = ["--out", str(tmp_path / "data"), "--history", "4"]
    subprocess.run([*command, *options], check=True, capture_output=True)
    prepared = read_prepared(tmp_path / "data")
    assert (prepared.info.dataset, prepared.info.domain) == ("feedback", "movie")
    samples = list(prepared.splits.train)
    assert len(samples) == 2 * 6  # the last two of six events, of the six users of this part
    for sample in samples:
        parity = int(sample.user[1:]) % 2
        assert sample.liked == (int(sample.target.id[1:]) % 2 == parity)
        assert len(sample.history) == 4
    both = subprocess.run(
        [*command, "movielens-100k", *options], check=False, capture_output=True, text=True
    )
    assert both.returncode == 2
    assert "either DATASET or --from-feedback" in both.stderr
