"""The tables as version 0.1 began: images only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "scenes",
        sa.Column("id", sa.String(26), primary_key=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("status", sa.String(16), nullable=False, index=True),
        *(
            sa.Column(name, sa.String)
            for name in ("error_code", "error_message", "title", "description", "attribution", "rights")
        ),
        *(
            sa.Column(name, sa.Integer, nullable=False)
            for name in ("width", "height", "channels", "bit_depth")
        ),
        sa.Column("bytes_original", NUMBER, nullable=False),
        *(sa.Column(name, sa.String, nullable=False) for name in ("format_original", "preset", "encoder")),
        sa.Column("options", sa.JSON, nullable=False),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("run", "attempts", "version")),
        sa.Column("progress", sa.JSON),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("updated_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "progress_events",
        sa.Column("id", NUMBER, primary_key=True),
        sa.Column(
            "scene_id",
            sa.String(26),
            sa.ForeignKey("scenes.id", ondelete="CASCADE"),
            nullable=False,
            index=True,
        ),
        sa.Column("data", sa.JSON, nullable=False),
        sqlite_autoincrement=True,
    )
