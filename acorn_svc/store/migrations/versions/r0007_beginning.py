"""A database knows since when it has been there, for older files are another one's."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the moment: that of the oldest scene where there are scenes, else the present one."""
    beginnings = op.create_table("beginnings", sa.Column("at", sa.DateTime, primary_key=True))
    created_at = sa.column("created_at", sa.DateTime)
    oldest = op.get_bind().scalar(sa.select(sa.func.min(created_at)).select_from(sa.table("scenes")))
    op.bulk_insert(beginnings, [{"at": oldest or datetime.now(UTC).replace(tzinfo=None)}])
