"""Jobs give signs of life and have priorities; those that wait have a place in the line."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns; what waits keeps the order in which it came."""
    for name in ("beats", "priority"):
        op.add_column("scenes", sa.Column(name, sa.Integer, nullable=False, server_default="0"))
    op.add_column("scenes", sa.Column("queued_at", sa.DateTime))
    op.execute("UPDATE scenes SET queued_at = created_at")
    with op.batch_alter_table("scenes") as scenes:
        scenes.alter_column("queued_at", existing_type=sa.DateTime(), nullable=False)
