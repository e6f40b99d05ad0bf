"""Likes and dislikes of a service's users, in SQLite or PostgreSQL.

What a call has returned from is on disk: SQLite syncs its write-ahead log at every commit
(`synchronous=FULL`), PostgreSQL does by default.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import (
    Connection,
    Engine,
    Table,
    create_engine,
    delete,
    event,
    func,
    make_url,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from tallrec.serve.tables import FEEDBACK, ITEMS
from tallrec.types import Dataset, Item

if TYPE_CHECKING:
    from sqlalchemy import URL

_INSERT: dict[str, Callable[[Table], sqlite.Insert | postgresql.Insert]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}
_MIGRATION_LOCK = 0x7A11  # any number; servers that start together migrate one after the other
_WAIT_S = 30  # for another process that writes to the same SQLite file
_ROWS = 1000  # of one INSERT


class Feedback(NamedTuple):
    """What a user said about an item, and when, in microseconds since 1970 (UTC)."""

    item: str
    title: str
    liked: bool
    at: int


class FeedbackStore:
    """Feedback and the catalogue it is about. Safe to use from several threads and processes.

    Args:
        url: `sqlite:///feedback.db` or `postgresql://user:password@host/database`. A SQLite file is
            made if it does not exist; tables are made or migrated.

    Raises:
        ValueError: If the URL is none of these, or the database cannot be opened or used.
    """

    def __init__(self, url: str) -> None:
        self._engine = _engine(_checked(url))
        self._reading = self._engine.execution_options(reading=True)
        self._insert = _INSERT[self._engine.dialect.name]
        with _explained(self._engine.url):
            _migrate(self._engine)

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    def check(self) -> None:
        """Asks the database for a sign of life.

        Raises:
            SQLAlchemyError: If there is none.
        """
        with self._reading.connect() as connection:
            connection.execute(select(1))

    def keep_items(self, items: Iterable[Item], domain: str) -> None:
        """Stores a catalogue: items are added, changed titles replaced, no item is removed.

        Args:
            items: The catalogue that feedback will be about.
            domain: The noun for an item.

        Raises:
            ValueError: If the store holds items of another domain.
        """
        with self._engine.begin() as connection:
            others = set(connection.scalars(select(ITEMS.c.domain).distinct())) - {domain}
            if others:
                raise ValueError(
                    f"{self._name} holds feedback on {others.pop()}s, and this run is about "
                    f"{domain}s: give another --feedback"
                )
            rows = [
                {"item": item.id, "title": item.title, "creator": item.creator, "domain": domain}
                for item in items
            ]
            for start in range(0, len(rows), _ROWS):
                self._upsert(connection, ITEMS, rows[start : start + _ROWS])

    def add(self, user: str, said: Sequence[tuple[str, bool]]) -> None:
        """Stores likes and dislikes, all or none; they are durable when this returns.

        Args:
            user: The user's id.
            said: (item id, liked) pairs, oldest first; ids are those of `keep_items`.

        Raises:
            SQLAlchemyError: If they cannot be stored.
        """
        now = time.time_ns() // 1000
        last = dict(said)  # an INSERT may touch a row only once
        rows = [
            {"user_id": user, "item": item, "liked": liked, "at": now + n}
            for n, (item, liked) in enumerate(last.items())
        ]
        with self._engine.begin() as connection:
            self._upsert(connection, FEEDBACK, rows)

    def of_user(self, user: str) -> list[Feedback]:
        """All that is stored about a user, oldest first."""
        said = (
            select(FEEDBACK.c.item, ITEMS.c.title, FEEDBACK.c.liked, FEEDBACK.c.at)
            .join(ITEMS)
            .where(FEEDBACK.c.user_id == user)
            .order_by(FEEDBACK.c.at, FEEDBACK.c.item)
        )
        with self._reading.connect() as connection:
            return [Feedback(*row) for row in connection.execute(said)]

    def delete_user(self, user: str) -> int:
        """Deletes all that is stored about a user, in SQLite from the files too.

        Returns:
            How many likes and dislikes that were.
        """
        with self._engine.begin() as connection:
            gone = connection.execute(delete(FEEDBACK).where(FEEDBACK.c.user_id == user)).rowcount
        if self._engine.dialect.name == "sqlite":
            with closing(self._engine.raw_connection()) as raw:
                raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone

    def dataset(self) -> Dataset:
        """All feedback as interactions: a like is a rating of 1, a dislike of 0.

        Raises:
            ValueError: If there is none.
        """
        catalog = select(ITEMS.c.item, ITEMS.c.title, ITEMS.c.creator).order_by(ITEMS.c.item)
        said = select(
            FEEDBACK.c.user_id.label("user"), FEEDBACK.c.item, FEEDBACK.c.liked, FEEDBACK.c.at
        ).order_by(FEEDBACK.c.at, FEEDBACK.c.user_id, FEEDBACK.c.item)
        with self._reading.connect() as connection:
            items = _frame(connection, catalog, {"creator": pl.String})
            events = _frame(connection, said, {"liked": pl.Boolean, "at": pl.Int64})
            domain = connection.scalar(select(func.min(ITEMS.c.domain)))
        if not events.height:
            raise ValueError(f"{self._name} holds no feedback yet")
        users = pl.Enum(events["user"].unique(maintain_order=True))
        interactions = events.select(
            pl.col("user").cast(users),
            pl.col("item").cast(pl.Enum(items["item"])),
            pl.col("liked").cast(pl.Float32).alias("rating"),
            (pl.col("at") // 1_000_000).alias("timestamp"),
        )
        return Dataset("feedback", str(domain), interactions, items, like_above=0.5)

    @property
    def _name(self) -> str:
        return self._engine.url.render_as_string(hide_password=True)

    def _upsert(self, connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
        statement = self._insert(table).values(list(rows))
        keys = list(table.primary_key.columns)
        changed = {c.name: statement.excluded[c.name] for c in table.columns if c not in set(keys)}
        connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed))


def _frame(connection: Connection, query: Any, types: dict[str, Any]) -> pl.DataFrame:
    return pl.read_database(query, connection, schema_overrides=types, infer_schema_length=None)


def _checked(url: str) -> URL:
    """The URL with the driver that the extra installs."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.get_backend_name() not in _INSERT:
        raise ValueError(
            "feedback is kept in SQLite or PostgreSQL: give a URL such as "
            "sqlite:///feedback.db or postgresql://user@host/database"
        )
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if not parsed.database or parsed.database == ":memory:":
        raise ValueError("feedback needs a file, such as sqlite:///feedback.db")
    if not (folder := Path(parsed.database).absolute().parent).is_dir():
        raise ValueError(f"there is no folder {folder} to keep feedback in")
    return parsed


def _engine(url: URL) -> Engine:
    # A failing statement must not write what users said into a log.
    if url.get_backend_name() == "postgresql":
        try:
            return create_engine(url, hide_parameters=True, pool_pre_ping=True)
        except ModuleNotFoundError:
            raise ValueError(
                "PostgreSQL needs a driver that is not installed: pip install 'tallrec[postgres]'"
            ) from None
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": _WAIT_S})
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, also before DDL
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(connection: Connection) -> None:
    # A transaction that reads first and writes later would fail where another wrote in between.
    reading = connection.get_execution_options().get("reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", "tallrec:serve/migrations")
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def _explained(url: URL) -> Iterator[None]:
    name = url.render_as_string(hide_password=True)
    try:
        yield
    except CommandError as error:
        raise ValueError(f"{name} was made by another version of tallrec: {error}") from None
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()
        raise ValueError(f"{name} cannot be used: {reason[0] if reason else error}") from None
