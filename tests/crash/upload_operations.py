"""Steps of uploads that arrive in several requests, to be cut off at any moment as those of `operations`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import select

from acorn_svc.store.scenes import Scene, SceneStore, Status
from acorn_svc.store.uploads import Also, Upload, UploadStore

CONTENT = b"what comes first, and the rest"
HALF = len(CONTENT) // 2
MADE = "0" * 25 + "4"


def fill_uploads(store: SceneStore) -> None:
    """One upload of which half has arrived, and one that has arrived as a whole."""
    uploads = UploadStore(store)
    for end in (HALF, len(CONTENT)):
        _append(uploads, uploads.create(len(CONTENT), "", {}, None), end)


def append_upload(store: SceneStore) -> None:
    """Send the rest of the first upload."""
    _append(UploadStore(store), _uploads(store)[0], len(CONTENT))


def finish_upload(store: SceneStore) -> None:
    """Make a scene of the second upload."""

    def make(upload: Upload, path: Path, sha256: str, also: Also) -> None:
        scene = Scene(
            id=MADE, status=Status.QUEUED, width=8, height=8, channels=3, bit_depth=8,
            bytes_original=upload.length, format_original="png", preset="draft", encoder="grid",
        )  # fmt: skip
        store.create(scene, path, lambda session: also(session, scene), sha256)

    UploadStore(store).finish(_uploads(store)[1].id, None, make)


def described_uploads(store: SceneStore) -> list[dict[str, Any]]:
    """What is known of each upload, with the bytes that count; none are left of one that is finished."""
    UploadStore(store).sweep()
    files = {path.name: path.read_bytes() for path in (store.settings.data / "uploads").iterdir()}
    uploads = _uploads(store)
    assert set(files) == {upload.id for upload in uploads if not upload.is_finished}
    return [
        {"upload": upload.id, "scene": upload.scene_id, "bytes": files.get(upload.id, b"")[: upload.received]}
        for upload in uploads
    ]


def _uploads(store: SceneStore) -> list[Upload]:
    with store.database.read() as session:
        return list(session.scalars(select(Upload).order_by(Upload.id)))


def _append(uploads: UploadStore, upload: Upload, end: int) -> None:
    writer = uploads.take_over(upload.id, upload.received)
    for position in range(upload.received, end, 8):
        writer.write(CONTENT[position : min(position + 8, end)])
    writer.keep()
    writer.close()
