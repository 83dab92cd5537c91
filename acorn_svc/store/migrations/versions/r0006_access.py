"""Scenes and uploads have owners scenes may be public; keys, the secret that signs, and the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Add them; what there is belongs to nobody and isn't public."""
    op.add_column("scenes", sa.Column("owner", sa.String(300)))
    op.add_column("scenes", sa.Column("public", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("uploads", sa.Column("owner", sa.String(300)))
    op.create_index("ix_scenes_owner", "scenes", ["owner"])
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(12), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("expires_at", sa.DateTime),
        sa.Column("revoked_at", sa.DateTime),
        sa.Column("used_at", sa.DateTime),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", NUMBER, primary_key=True),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("caller", sa.String(300), nullable=False),
        sa.Column("name", sa.String(300), nullable=False),
        sa.Column("action", sa.String(300), nullable=False),
        sa.Column("target", sa.String(300)),
        sa.Column("address", sa.String(64)),
        sa.Column("status", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
