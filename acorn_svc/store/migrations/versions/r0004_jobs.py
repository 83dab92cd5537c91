"""Jobs give signs of life and have priorities; those that wait have a place in the line."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

LONG_AGO = "1970-01-01 00:00:00.000000"  # what servers of the version before add, which know no line


def upgrade() -> None:
    """Add the columns; what waits keeps the order in which it came."""
    for name in ("beats", "priority"):
        op.add_column("scenes", sa.Column(name, sa.Integer, nullable=False, server_default="0"))
    op.add_column("scenes", sa.Column("queued_at", sa.DateTime, nullable=False, server_default=LONG_AGO))
    op.execute("UPDATE scenes SET queued_at = created_at")
