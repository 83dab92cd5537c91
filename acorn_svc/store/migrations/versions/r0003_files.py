"""Files have rows of their own: what a scene needs stands there, and what stands nowhere is rubbish."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
FOLDER = "'scenes/' || id || '/'"
KNOWN = [
    ("original", f"{FOLDER} || 'original'", "bytes_original", "format_original <> 'acorn'"),
    ("original", f"{FOLDER} || '1.acorn'", "bytes_original", "format_original = 'acorn'"),
    ("snapshot", f"{FOLDER} || CAST(version - 1 AS VARCHAR) || '.acorn'", "0", "version > 1"),
    ("snapshot", f"{FOLDER} || CAST(version AS VARCHAR) || '.acorn'", "0", "version > 0"),
]


def upgrade() -> None:
    """Add the table, with the files that there are; snapshots of before don't count for the quota."""
    op.create_table(
        "files",
        sa.Column("id", NUMBER, primary_key=True),
        sa.Column(
            "scene_id",
            sa.String(26),
            sa.ForeignKey("scenes.id", ondelete="CASCADE"),
            nullable=False,
            index=True,
        ),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("key", sa.String, nullable=False, index=True),
        sa.Column("bytes", NUMBER, nullable=False),
        sqlite_autoincrement=True,
    )
    for role, key, size, where in KNOWN:
        op.execute(
            "INSERT INTO files (scene_id, role, key, bytes) "
            f"SELECT id, '{role}', {key}, {size} FROM scenes WHERE {where}"
        )
