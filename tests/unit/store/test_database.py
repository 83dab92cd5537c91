"""Data folders of older versions go on being used."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy import text

from acorn_svc.store.database import Database, ProgressEvent, Scene, Status

# The tables as version 0.1.0 made them.
OLD = """
CREATE TABLE scenes (
    id VARCHAR(26) NOT NULL, kind VARCHAR NOT NULL, status VARCHAR(16) NOT NULL, error_code VARCHAR,
    error_message VARCHAR, title VARCHAR, description VARCHAR, attribution VARCHAR, rights VARCHAR,
    width INTEGER NOT NULL, height INTEGER NOT NULL, channels INTEGER NOT NULL, bit_depth INTEGER NOT NULL,
    bytes_original INTEGER NOT NULL, format_original VARCHAR NOT NULL, preset VARCHAR NOT NULL,
    encoder VARCHAR NOT NULL, options JSON NOT NULL, run INTEGER NOT NULL, attempts INTEGER NOT NULL,
    version INTEGER NOT NULL, progress JSON, created_at DATETIME NOT NULL, updated_at DATETIME NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX ix_scenes_status ON scenes (status);
CREATE TABLE progress_events (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, scene_id VARCHAR(26) NOT NULL, data JSON NOT NULL,
    FOREIGN KEY(scene_id) REFERENCES scenes (id) ON DELETE CASCADE
);
CREATE INDEX ix_progress_events_scene_id ON progress_events (scene_id);
INSERT INTO scenes VALUES (
    'a', 'image', 'ready', NULL, NULL, 'Pluto', NULL, NULL, NULL, 40, 30, 3, 8, 99, 'png', 'draft', 'grid',
    '{}', 0, 0, 2, NULL, '2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000'
);
INSERT INTO progress_events VALUES (7, 'a', '{"step": 1}');
"""


def test_scenes_of_version_0_1_are_kept_and_shapes_join_them(tmp_path: Path) -> None:
    path = tmp_path / "acorn.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD)
    connection.close()
    for _ in range(2):  # the second start finds nothing to do
        database = Database(path)
        with database.read() as session:
            scene = session.get_one(Scene, "a")
            assert (scene.title, scene.width, scene.version, scene.shape) == ("Pluto", 40, 2, None)
            assert session.get_one(ProgressEvent, 7).data == {"step": 1}
            indexes = session.execute(text("SELECT name FROM sqlite_master WHERE type = 'index'")).scalars()
            assert "ix_scenes_status" in set(indexes)
        database.close()
    database = Database(path)
    shape = Scene(
        id="b", kind="shape", status=Status.QUEUED, bytes_original=1, format_original="ply",
        preset="draft", encoder="grid", shape={"vertices": 3},
    )  # fmt: skip
    with database.write() as session:
        session.add(shape)
        session.delete(session.get_one(Scene, "a"))
    with database.read() as session:
        assert session.get_one(Scene, "b").width is None
        assert session.get(ProgressEvent, 7) is None, "the events still go with their scene"
    database.close()
