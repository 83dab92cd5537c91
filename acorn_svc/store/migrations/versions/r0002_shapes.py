"""Shapes beside images: they have no size in pixels."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add what is known of shapes; SQLite copies the table, for it can't let a column become null."""
    with op.batch_alter_table("scenes") as scenes:
        for name in ("width", "height", "channels", "bit_depth"):
            scenes.alter_column(name, existing_type=sa.Integer(), nullable=True)
        scenes.add_column(sa.Column("shape", sa.JSON))
