"""How the tables came to be what they are, one revision after the other.

Revisions only add, so that a server of the version before can go on while others are started anew.
A new one: `r0004_what.py` beside the others, whose `down_revision` is the one before.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from acorn_svc.errors import Conflict

IMAGES, SHAPES = "0001", "0002"  # what there was before revisions were written down


def upgrade(connection: Connection) -> None:
    """Make or upgrade the tables, in the transaction of `connection`.

    Raises:
        Conflict: the tables were made by a later version of Acorn.
    """
    config = _config(connection)
    present = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if present is None:
        _recognise(connection, config)
    elif present not in known:
        raise Conflict(f"A later version of Acorn has used this database (its revision {present}); use that.")
    command.upgrade(config, "head")


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _recognise(connection: Connection, config: Config) -> None:
    """Note the revision of tables that were made before revisions were written down."""
    tables = inspect(connection)
    if not tables.has_table("scenes"):
        return
    columns = {column["name"] for column in tables.get_columns("scenes")}
    command.stamp(config, SHAPES if "shape" in columns else IMAGES)
