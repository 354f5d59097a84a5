"""Runs, what was measured in them, what went wrong, and notes."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "runs",
        sa.Column("id", sa.String(120), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("seed", sa.String(40), nullable=False),
        sa.Column("rounds", sa.Integer, nullable=False),
        sa.Column("rounds_done", sa.Integer, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("versions", sa.JSON, nullable=False),
        sa.Column("environment", sa.Text, nullable=False),
        sa.Column("created", sa.String(40), nullable=False),
        sa.Column("started", sa.String(40)),
        sa.Column("finished", sa.String(40)),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    op.create_index("ix_runs_created", "runs", ["created"])
    op.create_table(
        "points",
        sa.Column("run", sa.String(120), nullable=False),
        sa.Column("place", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("work", sa.Text, nullable=False),
        sa.Column("client", sa.Text),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("elapsed_s", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("run", "place", name="pk_points"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_points_run", ondelete="CASCADE"),
    )
    op.create_table(
        "incidents",
        sa.Column("run", sa.String(120), nullable=False),
        sa.Column("place", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("work", sa.Text, nullable=False),
        sa.Column("client", sa.Text),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("elapsed_s", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("run", "place", name="pk_incidents"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_incidents_run", ondelete="CASCADE"),
    )
    op.create_table(
        "notes",
        sa.Column("run", sa.String(120), nullable=False),
        sa.Column("title", sa.String(200), nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run", "title", name="pk_notes"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_notes_run", ondelete="CASCADE"),
    )


def downgrade() -> None:
    """Remove them, with all runs."""
    for table in ("notes", "incidents", "points", "runs"):
        op.drop_table(table)
