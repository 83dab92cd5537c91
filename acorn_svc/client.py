"""A client of a running service: upload, wait, look, keep.

    from acorn_svc.client import Client

    acorn = Client("http://127.0.0.1:8000")
    scene = acorn.wait(acorn.upload("photo.jpg", preset="draft").id)
    detail = acorn.render(scene.id, region=(1200, 800, 256, 256), size=(1024, 1024))
    acorn.download(scene.id, "photo.acorn")

Scenes are told as the service tells them, as `acorn_svc.api.scenes.SceneOut`. What the service refuses is
raised as the error that it was there, a class of `acorn_svc.errors`; a service that cannot be reached is
Unavailable.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from acorn_svc.api.scenes import MAX_PAGE, SceneList, SceneOut
from acorn_svc.errors import AcornError, Conflict, FitFailed, Unavailable
from acorn_svc.formats.files import replace_file
from acorn_svc.formats.images import Pixels, read_image
from acorn_svc.store.scenes import Status

LOOK_SECONDS: Final = 0.5
PATIENCE_SECONDS: Final = 60.0
"""For so long `wait` bears a service that is away, being started anew for example."""
PART_BYTES: Final = 1 << 20
SENT_BYTES: Final = 1 << 16
BINARY: Final = "application/octet-stream"

Told = Callable[[int, int], object]


class Client:
    """A service at `url`, asked with an API key where it wants one.

    `headers` go with every request, and each may take `seconds` without an answer.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = 120.0,
    ) -> None:
        self._url = url.rstrip("/")
        known = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._headers = known | dict(headers or {})
        self._seconds = seconds

    def is_ready(self) -> bool:
        """True; raises Unavailable while the service cannot take requests."""
        self._ask("GET", "readyz")
        return True

    def upload(
        self, original: str | os.PathLike[str] | bytes, progress: Told | None = None, **options: object
    ) -> SceneOut:
        """The new scene of an image, a mesh or an `.acorn` file.

        Args:
            original: a file, or the content of one.
            progress: called with the bytes sent so far, and all that there are.
            options: `title`, `preset`, `seconds`, `steps` and so on, as for `POST /scenes`.
        """
        with _opened(original) as file:
            body = _Counted(file, progress or (lambda _sent, _all: None))
            headers = {"Content-Type": BINARY, "Content-Length": str(body.length)}
            return SceneOut.model_validate_json(self._ask("POST", "scenes", options, body, headers))

    def scenes(self) -> Iterator[SceneOut]:
        """Every scene, newest first."""
        query: dict[str, object] = {"limit": MAX_PAGE}
        while True:
            page = SceneList.model_validate_json(self._ask("GET", "scenes", query))
            yield from page.items
            if page.next is None:
                return
            query["cursor"] = page.next

    def scene(self, scene_id: str) -> SceneOut:
        """One scene as it is now; raises NotFound."""
        return SceneOut.model_validate_json(self._ask("GET", _path(scene_id)))

    def wait(
        self,
        scene_id: str,
        progress: Callable[[SceneOut], object] | None = None,
        seconds: float = float("inf"),
    ) -> SceneOut:
        """The scene once its fit is over.

        Args:
            scene_id: of the scene.
            progress: called with the scene whenever there is news of it.
            seconds: how long to wait at most.

        Raises:
            FitFailed: the fit failed; the message says why.
            Conflict: it was cancelled or paused.
            TimeoutError: it takes longer than `seconds`.
            Unavailable: the service has been away for a minute.
        """
        end = time.monotonic() + seconds
        told: SceneOut | None = None
        while True:
            scene = self._scene_patiently(scene_id)
            if progress is not None and scene != told:
                progress(scene)
                told = scene
            if scene.status not in (Status.QUEUED, Status.FITTING):
                return _fitted(scene)
            if time.monotonic() > end:
                raise TimeoutError(f"the scene is still {scene.status} after {seconds} seconds")
            time.sleep(LOOK_SECONDS)

    def _scene_patiently(self, scene_id: str) -> SceneOut:
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self.scene(scene_id)
            except Unavailable:
                if time.monotonic() > end:
                    raise
                time.sleep(LOOK_SECONDS)

    def render(
        self,
        scene_id: str,
        region: Sequence[float] | None = None,
        size: Sequence[int] | None = None,
    ) -> Pixels:
        """A part of an image at any size, `[height, width, channels]`, of 8 or 16 bits as the image is.

        Args:
            scene_id: of the scene.
            region: `(x, y, width, height)` in pixels of the full image; all of it by default.
            size: `(width, height)` of the result in pixels; the region's own by default.
        """
        query = {"region": _joined(region), "size": _joined(size), "format": "png"}
        content = self._ask("GET", f"{_path(scene_id)}/region", query)
        return read_image(content)

    def query(
        self, scene_id: str, points: ArrayLike, *, pixel_size: float = 1.0, voxel_size: float = 0.0
    ) -> NDArray[np.float32]:
        """The field's values at `points`, `[n, 2]` of an image or `[n, 3]` of a shape: `[n, channels]`.

        Coordinates are in pixels of the full image, or in the units of the mesh; values of an image are from
        0 to 1, of a shape signed distances (and colours). `pixel_size` and `voxel_size` are the side of what
        a value is the average over, in the same units.
        """
        where = np.ascontiguousarray(points, "<f4")
        sizes = {"pixel_size": pixel_size, "voxel_size": voxel_size}
        headers = {"Content-Type": BINARY}
        content = self._ask("POST", f"{_path(scene_id)}/query", sizes, where.tobytes(), headers)
        return np.frombuffer(content, "<f4").reshape(len(where), -1)

    def download(self, scene_id: str, path: str | os.PathLike[str]) -> None:
        """Write the scene's `.acorn` file, as far as the fit has come, to `path`."""
        self._save(f"{_path(scene_id)}/file", {}, Path(path))

    def mesh(self, scene_id: str, path: str | os.PathLike[str], resolution: int = 256) -> None:
        """Write the surface of a shape to `path`, a `.glb`, `.ply`, `.stl` or `.obj` file.

        `resolution` is the number of cells along the longest side of its box.
        """
        suffix = Path(path).suffix.lower().removeprefix(".")
        self._save(f"{_path(scene_id)}/mesh", {"resolution": resolution, "format": suffix}, Path(path))

    def delete(self, scene_id: str) -> None:
        """Remove a scene and all its files."""
        self._ask("DELETE", _path(scene_id))

    def _save(self, path: str, query: Mapping[str, object], target: Path) -> None:
        with self._answer("GET", path, query) as answer:
            replace_file(target, _parts(answer))

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        body: bytes | _Counted | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        with self._answer(method, path, query or {}, body, headers or {}) as answer:
            return b"".join(_parts(answer))

    def _answer(
        self,
        method: str,
        path: str,
        query: Mapping[str, object],
        body: bytes | _Counted | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        """An open answer; raises what the service has refused with."""
        given = urllib.parse.urlencode({name: value for name, value in query.items() if value is not None})
        request = urllib.request.Request(
            f"{self._url}/{path}?{given}",
            cast(Any, body),
            {**self._headers, **(headers or {})},
            method=method,
        )
        try:
            return cast(http.client.HTTPResponse, urllib.request.urlopen(request, timeout=self._seconds))
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error.code, error.read()) from None
        except (http.client.HTTPException, OSError) as error:
            raise Unavailable("The service cannot be reached.") from error


def _parts(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body of an answer, part by part; raises Unavailable when it ends too soon."""
    try:
        while part := answer.read(PART_BYTES):
            yield part
    except (http.client.HTTPException, OSError) as error:
        raise Unavailable("The answer was cut off.") from error
    if answer.length:
        raise Unavailable("The answer was cut off.")


class _Counted:
    """A file that tells how much of it has been read."""

    def __init__(self, file: BinaryIO, progress: Told) -> None:
        self.length = file.seek(0, io.SEEK_END)
        file.seek(0)
        self._file = file
        self._progress = progress

    def read(self, size: int = -1) -> bytes:
        """The next bytes; for the library that sends them."""
        part = self._file.read(max(size, SENT_BYTES) if size >= 0 else size)
        self._progress(self._file.tell(), self.length)
        return part


def _opened(original: str | os.PathLike[str] | bytes) -> BinaryIO:
    return io.BytesIO(original) if isinstance(original, bytes) else Path(original).open("rb")


def _path(scene_id: str) -> str:
    return f"scenes/{urllib.parse.quote(scene_id, safe='')}"


def _joined(numbers: Sequence[float] | None) -> str | None:
    if numbers is None:
        return None
    return ",".join(f"{number:.9f}".rstrip("0").rstrip(".") for number in numbers)


def _fitted(scene: SceneOut) -> SceneOut:
    if scene.status == Status.FAILED:
        raise FitFailed(scene.error.message if scene.error else "The fit failed.")
    if scene.status != Status.READY:
        raise Conflict(f"The scene is {scene.status}.")
    return scene


def _refusal(status: int, body: bytes) -> AcornError:
    """The error that the service told, or what its status means where something else has answered."""
    try:
        told = json.loads(body)["error"]
        kind = _kinds()[told["code"]]
        return kind(told["message"], limit=told.get("limit"), value=told.get("value"))
    except (ValueError, KeyError, TypeError):
        if status in (502, 503, 504):
            return Unavailable("The service is not there at the moment.")
        return AcornError(f"The service answered with the status {status}.")


def _kinds() -> dict[str, type[AcornError]]:
    """Every error by its code."""

    def below(kind: type[AcornError]) -> Iterator[type[AcornError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from below(child)

    return {kind.code: kind for kind in below(AcornError)}
