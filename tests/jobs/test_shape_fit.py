"""A mesh from upload to end: fitted, looked at while it is, downloaded as a closed mesh."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import trimesh
from live_server import Server, wait_until

from acorn_svc.field.kinds import as_shape
from acorn_svc.formats.container import read_field

pytestmark = pytest.mark.slow
ENDLESS = 10_000_000
RADIUS = 2.0


def ball(subdivisions: int = 3) -> bytes:
    """A PLY of a coloured sphere."""
    mesh = trimesh.creation.icosphere(subdivisions, RADIUS)
    mesh.visual.vertex_colors = np.clip((mesh.vertices + RADIUS) * 60, 0, 255).astype(np.uint8)
    content = mesh.export(file_type="ply")
    assert isinstance(content, bytes)
    return content


def test_a_mesh_becomes_a_field(server: Server) -> None:
    scene = server.upload(ball(), steps=150, preset="draft", title="Ball")
    assert (scene["kind"], scene["status"], scene["width"]) == ("shape", "queued", None)
    assert (scene["shape"]["vertices"], scene["shape"]["faces"]) == (642, 1280)
    assert scene["shape"]["colours"]
    ready = server.wait_for_status(scene["id"], "ready")
    field = as_shape(read_field(server.file(scene["id"])))
    assert ready["progress"]["stage"] == "done"
    assert ready["progress"]["psnr"] is None
    assert ready["progress"]["iou"] == pytest.approx(field.info().iou)
    assert ready["progress"]["iou"] > 0.9
    answer = server.client.get(f"/scenes/{scene['id']}/mesh", params={"resolution": 48, "format": "ply"})
    mesh = trimesh.load(BytesIO(answer.content), file_type="ply")
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.1)
    body = {"points": [[0, 0, 0], [0, 0, RADIUS], [3, 3, 3]]}
    values = server.client.post(f"/scenes/{scene['id']}/query", json=body).json()["values"]
    assert values[0][0] < values[1][0] < values[2][0]


def test_a_shape_is_looked_at_while_it_is_fitted_and_goes_on_after_a_crash(server: Server) -> None:
    scene = server.upload(ball(2), steps=ENDLESS, preset="draft")
    server.wait_for_version(scene["id"], 1)
    for address in (
        f"/tiles3d/{scene['id']}/tileset.json",
        f"/tiles3d/{scene['id']}/content/0/0/0/0.glb",
        f"/scenes/{scene['id']}/thumbnail.webp",
        f"/scenes/{scene['id']}/tree",
    ):
        assert server.client.get(address).status_code == 200, address
    (child,) = server.processes("acorn_svc.jobs.child")
    before = server.scene(scene["id"])
    child.kill()
    server.wait_for_version(scene["id"], before["version"] + 1)
    wait_until(lambda: server.scene(scene["id"])["progress"]["step"] > before["progress"]["step"], "progress")
    assert server.scene(scene["id"])["status"] == "fitting"
    server.client.delete(f"/scenes/{scene['id']}")
