"""The tables of the runs database, as they are at the newest revision; src/atoll/store/migrations leads to them."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Double, ForeignKey, Index, Integer, MetaData, String, Table, Text

REVISION = "0001"  # the newest migration, so that a database that is up to date is opened without Alembic

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

runs = Table(
    "runs",
    metadata,
    Column("id", String(120), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("status", String(20), nullable=False),
    Column("seed", String(40), nullable=False),  # as text: a seed may have more than 64 bits
    Column("rounds", Integer, nullable=False),
    Column("rounds_done", Integer, nullable=False),
    Column("config", JSON, nullable=False),
    Column("versions", JSON, nullable=False),
    Column("environment", Text, nullable=False),
    Column("created", String(40), nullable=False),  # ISO 8601, UTC
    Column("started", String(40)),
    Column("finished", String(40)),
    Column("error", Text, nullable=False),
    Column("folder", Text, nullable=False),
)

# `place` counts what a run has recorded, over both tables: the order of events, and where a resumed run goes on.
points = Table(
    "points",
    metadata,
    Column("run", String(120), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("round", Integer, nullable=False),
    Column("work", Text, nullable=False),
    Column("client", Text),
    Column("name", Text, nullable=False),
    Column("value", Double),  # NULL is NaN, which SQLite does not store
    Column("elapsed_s", Double, nullable=False),
)

incidents = Table(
    "incidents",
    metadata,
    Column("run", String(120), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("round", Integer, nullable=False),
    Column("work", Text, nullable=False),
    Column("client", Text),
    Column("kind", String(40), nullable=False),
    Column("text", Text, nullable=False),
    Column("elapsed_s", Double, nullable=False),
)

notes = Table(
    "notes",
    metadata,
    Column("run", String(120), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("title", String(200), primary_key=True),
    Column("place", Integer, nullable=False),
    Column("text", Text, nullable=False),
)

Index(None, runs.c.created)
