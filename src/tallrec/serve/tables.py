"""The tables of the feedback store. A change needs a migration in `migrations/versions`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, MetaData, String, Table

METADATA = MetaData(
    naming_convention={"pk": "pk_%(table_name)s", "fk": "fk_%(table_name)s_%(column_0_name)s"}
)

ITEMS = Table(
    "items",
    METADATA,
    Column("item", String, primary_key=True),
    Column("title", String, nullable=False),
    Column("creator", String),
    Column("domain", String, nullable=False),
)

# A user's last word on an item counts: saying the same again, as clients do that got no answer,
# changes nothing but the time.
FEEDBACK = Table(
    "feedback",
    METADATA,
    Column("user_id", String, primary_key=True),
    Column("item", String, ForeignKey("items.item"), primary_key=True),
    Column("liked", Boolean, nullable=False),
    Column("at", BigInteger, nullable=False),  # microseconds since 1970, UTC
)
