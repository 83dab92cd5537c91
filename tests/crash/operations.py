"""What may be cut off at any moment: each changes a data folder, in one thread.

Each is given an open store and does one thing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from upload_operations import append_upload, fill_uploads, finish_upload

from acorn_svc.store.backup import write_backup
from acorn_svc.store.scenes import Scene, SceneStore, Status

FITTING, READY, NEW = ("0" * 25 + digit for digit in "123")
BACKUP = "backup.tar"
PROGRESS = {"stage": "fitting", "step": 7}


def spooled(store: SceneStore, content: bytes) -> Path:
    """A new file of the spool, in several writes."""
    path = store.blobs.spool_file()
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(content), 8):
            file.write(content[start : start + 8])
    return path


def add_scene(store: SceneStore, scene_id: str, content: bytes) -> None:
    """Upload an image."""
    scene = Scene(
        id=scene_id, status=Status.FITTING, width=8, height=8, channels=3, bit_depth=8,
        bytes_original=len(content), format_original="png", preset="draft", encoder="grid",
    )  # fmt: skip
    store.create(scene, spooled(store, content))


def create(store: SceneStore) -> None:
    """Upload what nobody has uploaded."""
    add_scene(store, NEW, b"a new picture")


def create_again(store: SceneStore) -> None:
    """Upload what is there already."""
    add_scene(store, NEW, b"the picture of both")


def publish(store: SceneStore) -> None:
    """Show something of a fit; the oldest snapshot goes."""
    store.publish_snapshot(FITTING, 0, spooled(store, b"the third snapshot"), PROGRESS)


def checkpoint(store: SceneStore) -> None:
    """Keep a checkpoint and show something; the oldest of both go."""
    snapshot, state = spooled(store, b"the third snapshot"), spooled(store, b"the third state")
    store.publish_snapshot(FITTING, 0, snapshot, PROGRESS, state)


def finish(store: SceneStore) -> None:
    """The last snapshot; the checkpoints go."""

    def then(scene: Scene) -> None:
        scene.status = Status.READY

    store.publish_snapshot(FITTING, 0, spooled(store, b"the last snapshot"), PROGRESS, then=then)


def note(store: SceneStore) -> None:
    """Tell of progress."""
    store.note_progress(FITTING, 0, PROGRESS)


def delete(store: SceneStore) -> None:
    """Delete a scene; its original is that of another one, too."""
    store.delete(FITTING)


def collect(store: SceneStore) -> None:
    """Remove what a crash has left behind."""
    store.collect(age=0)


def back_up(store: SceneStore) -> None:
    """Write a backup beside the data folder."""
    destination = store.blobs.folder.parents[1] / BACKUP
    destination.unlink(missing_ok=True)
    write_backup(store, destination)


OPERATIONS: dict[str, Callable[[SceneStore], None]] = {
    operation.__name__: operation
    for operation in (
        create, create_again, publish, checkpoint, finish, note, delete, collect, back_up, append_upload,
        finish_upload,
    )
}  # fmt: skip


def summary(store: SceneStore) -> list[tuple[object, ...]]:
    """What tells whether an operation was done."""
    return [
        (scene.id, scene.status, scene.version, len(store.progress_after(scene.id, 0)))
        for scene in store.page(100).items
    ]


def fill(store: SceneStore) -> None:
    """What is there before an operation."""
    for scene_id in (FITTING, READY):
        add_scene(store, scene_id, b"the picture of both")
        for number in (b"first", b"second"):
            snapshot = spooled(store, b"the %s snapshot of %s" % (number, scene_id[-1:].encode()))
            state = spooled(store, b"the %s state of %s" % (number, scene_id[-1:].encode()))
            store.publish_snapshot(scene_id, 0, snapshot, {"stage": "fitting", "step": 1}, state)
    store.blobs.publish(spooled(store, b"what no scene needs"), "snapshots/nobody")
    fill_uploads(store)
