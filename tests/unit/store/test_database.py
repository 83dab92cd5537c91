"""Data folders of older versions go on being used, and those of newer ones are left alone."""

from __future__ import annotations

import multiprocessing
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select, text

from acorn_svc.errors import Conflict
from acorn_svc.settings import Settings
from acorn_svc.store import audit, keys  # noqa: F401  they have tables, too
from acorn_svc.store.database import Base, Beginning, ProgressEvent, Scene, SqliteDatabase, Status
from acorn_svc.store.scenes import SceneStore

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
    'aaaaaaaaaaaaaaaaaaaaaaaaaa', 'image', 'ready', NULL, NULL, 'Pluto', NULL, NULL, NULL, 40, 30, 3, 8,
    99, 'png', 'draft', 'grid', '{}', 0, 0, 2, NULL,
    '2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000'
);
INSERT INTO progress_events VALUES (7, 'aaaaaaaaaaaaaaaaaaaaaaaaaa', '{"step": 1}');
"""
# The change that came with shapes, before revisions were written down.
SHAPES = """
CREATE TABLE new AS SELECT * FROM scenes;
DROP TABLE scenes;
CREATE TABLE scenes (
    id VARCHAR(26) NOT NULL, kind VARCHAR NOT NULL, status VARCHAR(16) NOT NULL, error_code VARCHAR,
    error_message VARCHAR, title VARCHAR, description VARCHAR, attribution VARCHAR, rights VARCHAR,
    width INTEGER, height INTEGER, channels INTEGER, bit_depth INTEGER, shape JSON,
    bytes_original INTEGER NOT NULL, format_original VARCHAR NOT NULL, preset VARCHAR NOT NULL,
    encoder VARCHAR NOT NULL, options JSON NOT NULL, run INTEGER NOT NULL, attempts INTEGER NOT NULL,
    version INTEGER NOT NULL, progress JSON, created_at DATETIME NOT NULL, updated_at DATETIME NOT NULL,
    PRIMARY KEY (id)
);
INSERT INTO scenes SELECT
    id, kind, status, error_code, error_message, title, description, attribution, rights, width, height,
    channels, bit_depth, NULL, bytes_original, format_original, preset, encoder, options, run, attempts,
    version, progress, created_at, updated_at FROM new;
DROP TABLE new;
CREATE INDEX ix_scenes_status ON scenes (status);
"""
SCENE = "a" * 26
FILES = {
    f"blobs/scenes/{SCENE}/original": b"a picture",
    f"blobs/scenes/{SCENE}/1.acorn": b"the first snapshot",
    f"blobs/scenes/{SCENE}/2.acorn": b"the second snapshot",
}


@pytest.fixture(params=["images", "shapes"])
def old_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A data folder as version 0.1 left it, before and after it learned of shapes."""
    with closing(sqlite3.connect(tmp_path / "acorn.sqlite")) as connection:
        connection.executescript(OLD + (SHAPES if request.param == "shapes" else ""))
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_scenes_of_version_0_1_are_kept_and_shapes_join_them(old_folder: Path) -> None:
    path = old_folder / "acorn.sqlite"
    for _ in range(2):  # the second start finds nothing to do
        database = SqliteDatabase(path)
        with database.read() as session:
            scene = session.get_one(Scene, SCENE)
            assert (scene.title, scene.width, scene.version, scene.shape) == ("Pluto", 40, 2, None)
            assert session.get_one(ProgressEvent, 7).data == {"step": 1}
            indexes = session.execute(text("SELECT name FROM sqlite_master WHERE type = 'index'")).scalars()
            assert "ix_scenes_status" in set(indexes)
        database.close()
    database = SqliteDatabase(path)
    with database.read() as session:
        assert session.scalars(select(Beginning.at)).one() == datetime(2026, 1, 1, tzinfo=UTC)
    shape = Scene(
        id="b", kind="shape", status=Status.QUEUED, bytes_original=1, format_original="ply",
        preset="draft", encoder="grid", shape={"vertices": 3},
    )  # fmt: skip
    with database.write() as session:
        session.add(shape)
        session.delete(session.get_one(Scene, SCENE))
    with database.read() as session:
        assert session.get_one(Scene, "b").width is None
        assert session.get(ProgressEvent, 7) is None, "the events still go with their scene"
    database.close()


def test_files_of_version_0_1_stay_where_they_are_until_their_scene_is_deleted(old_folder: Path) -> None:
    store = SceneStore(Settings(data=old_folder))
    assert store.local(store.snapshot(SCENE)).read_bytes() == b"the second snapshot"
    assert store.original(SCENE).read_bytes() == b"a picture"
    assert store.collect(age=0).files == 0
    store.delete(SCENE)
    assert not [path for path in (old_folder / "blobs" / "scenes").rglob("*")]
    store.close()


def test_a_fit_of_version_0_1_goes_on_from_its_checkpoint(old_folder: Path) -> None:
    work = old_folder / "work"
    for scene_id in (SCENE, "gone"):
        (work / scene_id).mkdir(parents=True)
        (work / scene_id / "checkpoint").write_bytes(b"a state")
        (work / scene_id / "lock").touch()
    store = SceneStore(Settings(data=old_folder))
    with store.edit(SCENE) as scene:
        scene.status = Status.FITTING
    store.adopt_old_checkpoints()
    assert [path.read_bytes() for path in store.checkpoints(SCENE)] == [b"a state"]
    assert not work.exists()
    store.adopt_old_checkpoints()
    assert len(store.checkpoints(SCENE)) == 1
    store.close()


def test_the_revisions_lead_to_the_tables_that_the_code_knows(old_folder: Path, tmp_path: Path) -> None:
    for path in (old_folder / "acorn.sqlite", tmp_path / "new.sqlite"):
        database = SqliteDatabase(path)
        with database.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, Base.metadata) == []
        database.close()


def test_a_database_of_a_later_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "acorn.sqlite"
    SqliteDatabase(path).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    with pytest.raises(Conflict, match=r"A later version of Acorn .* 9999"):
        SqliteDatabase(path)
    assert path.read_bytes() == before


def _open(path: Path) -> None:
    SqliteDatabase(path).close()


def test_several_processes_may_upgrade_at_once(tmp_path: Path) -> None:
    path = tmp_path / "acorn.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(OLD)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(_open, [path] * 4)
    database = SqliteDatabase(path)
    with database.read() as session:
        assert session.get_one(Scene, SCENE).title == "Pluto"
    database.close()
