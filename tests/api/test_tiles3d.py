"""3D Tiles over HTTP: walked as a client walks them, from the tileset to every content."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import pytest
import trimesh
from conftest import CENTRE, ORIGIN, RADIUS, VOXEL, Gallery
from made_shapes import ball, made_shape
from numpy.typing import NDArray
from test_shapes import refused

from acorn_svc.field.mesh import Mesh
from acorn_svc.field.shape import ShapeField
from acorn_svc.field.tiles import ShapeTiles, Tile
from acorn_svc.formats import tiles3d
from acorn_svc.store.scenes import Status

Document = dict[str, Any]
Place = tuple[int, int, int, int]


@pytest.fixture(scope="module")
def shape(gallery: Gallery, ball_field: ShapeField) -> str:
    return gallery.add(ball_field)


def tileset_of(gallery: Gallery, scene_id: str) -> tuple[str, Document]:
    url = gallery.client.get(f"/scenes/{scene_id}").json()["links"]["tiles3d"]
    answer = gallery.client.get(url)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return url, answer.json()


class Subtree:
    """A subtree, read by the specification alone: bit `i` is `data[i // 8] >> i % 8 & 1`."""

    def __init__(self, content: bytes) -> None:
        magic, version, json_bytes, binary_bytes = struct.unpack_from("<4sIQQ", content)
        assert (magic, version) == (b"subt", 1)
        assert json_bytes % 8 == binary_bytes % 8 == 0
        assert len(content) == 24 + json_bytes + binary_bytes
        self.document: Document = json.loads(content[24 : 24 + json_bytes])
        self._binary = content[24 + json_bytes :]
        assert [buffer["byteLength"] for buffer in self.document["buffers"]] == [binary_bytes]

    def bits(self, name: str) -> set[int] | None:
        """Which bits of an availability are set; None for all."""
        entry = self.document[name]
        entry = entry[0] if isinstance(entry, list) else entry
        if "constant" in entry:
            return None if entry["constant"] else set()
        view = self.document["bufferViews"][entry["bitstream"]]
        assert view["byteOffset"] % 8 == 0
        data = self._binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        found = {i for i in range(8 * len(data)) if data[i // 8] >> i % 8 & 1}
        assert entry["availableCount"] == len(found)
        return found


def spread(code: int, levels: int) -> tuple[int, int, int]:
    """x, y, z of a Morton index."""
    places = [0, 0, 0]
    for bit in range(3 * levels):
        places[bit % 3] |= (code >> bit & 1) << bit // 3
    return places[0], places[1], places[2]


def walk(fetch: Any, tileset: Document) -> Iterator[Place]:
    """Every tile with content: level, x, y, z."""
    tiling = tileset["root"]["implicitTiling"]
    count = tiling["subtreeLevels"]
    roots = [(0, 0, 0, 0)]
    while roots:
        level, *low = roots.pop()
        tree = Subtree(fetch(tiling["subtrees"]["uri"], level, *low))
        assert tree.bits("tileAvailability") == tree.bits("contentAvailability")
        for depth in range(count):
            first = (8**depth - 1) // 7
            for code in range(8**depth):
                if first + code in (tree.bits("tileAvailability") or set()):
                    place = [(at << depth) + step for at, step in zip(low, spread(code, depth), strict=True)]
                    yield level + depth, place[0], place[1], place[2]
        for code in tree.bits("childSubtreeAvailability") or ():
            place = [(at << count) + step for at, step in zip(low, spread(code, count), strict=True)]
            roots.append((level + count, place[0], place[1], place[2]))


def named(template: str, level: int, x: int, y: int, z: int) -> str:
    return (
        template.replace("{level}", f"{level}")
        .replace("{x}", f"{x}")
        .replace("{y}", f"{y}")
        .replace("{z}", f"{z}")
    )


def positions_of(glb: bytes) -> NDArray[np.float64]:
    """Vertices in the coordinates of the tileset, to which clients turn glTF's y up."""
    scene = trimesh.load(BytesIO(glb), file_type="glb", force="mesh")
    x, y, z = np.asarray(scene.vertices, np.float64).T
    return np.stack([x, -z, y], axis=1)


def test_a_client_finds_every_tile_and_the_surface_in_it(
    gallery: Gallery, shape: str, ball_field: ShapeField
) -> None:
    url, tileset = tileset_of(gallery, shape)
    root = tileset["root"]
    assert tileset["asset"]["version"] == "1.1"
    assert tileset["geometricError"] > root["geometricError"] > 0
    assert root["refine"] == "REPLACE"
    assert root["implicitTiling"]["subdivisionScheme"] == "OCTREE"
    move = np.array(root["transform"]).reshape(4, 4).T
    box = np.array(root["boundingVolume"]["box"]).reshape(4, 3)
    low, side = box[0] - box[1:].sum(axis=0), 2 * box[1, 0]

    def fetch(template: str, *place: int) -> bytes:
        answer = gallery.client.get(urljoin(url, named(template, *place)))
        assert answer.status_code == 200, answer.text
        return answer.content

    places = sorted(walk(fetch, tileset))
    levels = {level for level, *_ in places}
    assert levels == set(range(root["implicitTiling"]["availableLevels"]))
    assert len(levels) > 1
    tiles = ShapeTiles.of(ball_field)
    wanted = {
        (level, x, y, z)
        for level, exist in enumerate(tiles.levels)
        for z, y, x in np.argwhere(exist).tolist()
    }
    assert set(places) == wanted
    found = 0
    for level, *place in places:
        glb = fetch(root["content"]["uri"], level, *place)
        assert glb[:4] == b"glTF"
        if len(glb) < 200:
            continue
        positions = positions_of(glb)
        voxel = root["geometricError"] / 2**level
        cube = low + np.array(place) * side / 2**level
        assert (positions > cube - 2.5 * voxel).all()
        assert (positions < cube + side / 2**level + 2.5 * voxel).all()
        in_mesh = positions + move[:3, 3]
        distance = np.linalg.norm(in_mesh - np.array(ORIGIN) - np.array(CENTRE) * VOXEL, axis=1)
        assert (np.abs(distance - RADIUS * VOXEL) < 2.5 * voxel).all()
        found += len(positions)
    assert found


def test_subtrees_follow_each_other_where_there_are_many_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles3d, "MAX_SUBTREE_LEVELS", 2)
    tiles = ShapeTiles.of(made_shape(ball((60, 70, 110), 50), (200, 130, 180)))
    assert len(tiles.levels) == 4

    def fetch(_template: str, *place: int) -> bytes:
        root = Tile(*place)
        assert tiles3d.has_subtree(tiles, root)
        return tiles3d.subtree(tiles, root)

    wanted = {
        (level, x, y, z)
        for level, exist in enumerate(tiles.levels)
        for z, y, x in np.argwhere(exist).tolist()
    }
    found = list(walk(fetch, tiles3d.tileset(tiles, 1)))
    assert len(found) == len(set(found))
    assert set(found) == wanted
    assert not tiles3d.has_subtree(tiles, Tile(1, 0, 0, 0))


def test_contents_are_valid_gltf(
    gallery: Gallery, shape: str, tmp_path: Path, gltf_errors: Callable[[Path], list[str]]
) -> None:
    for name, content in (
        ("tile", gallery.client.get(f"/tiles3d/{shape}/content/0/0/0/0.glb").content),
        ("nothing", tiles3d.content(Mesh(np.empty((0, 3)), np.empty((0, 3), np.int32)), tmp_path)),
    ):
        path = tmp_path / f"{name}.glb"
        path.write_bytes(content)
        assert gltf_errors(path) == []


@pytest.mark.parametrize(
    "address",
    ["content/0/1/0/0.glb", "content/9/0/0/0.glb", "content/0/-1/0/0.glb", "content/0/x/0/0.glb",
     "subtrees/1.0.0.0.subtree", "subtrees/0.0.0.subtree", "subtrees/0.0.0.9.subtree", "tileset.xml"],
)  # fmt: skip
def test_what_is_not_there_is_not_found(gallery: Gallery, shape: str, address: str) -> None:
    refused(gallery.client.get(f"/tiles3d/{shape}/{address}"), 404)


def test_other_sites_caches_and_heads(gallery: Gallery, shape: str) -> None:
    for address in ("tileset.json", "subtrees/0.0.0.0.subtree", "content/0/0/0/0.glb"):
        url = f"/tiles3d/{shape}/{address}"
        answer = gallery.client.get(url)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "max-age=300" in answer.headers["cache-control"]
        etag = answer.headers["etag"]
        assert gallery.client.head(url).headers["etag"] == etag
        assert gallery.client.get(url, headers={"If-None-Match": etag}).status_code == 304
        assert gallery.client.options(url).status_code == 204


def test_tiles_change_with_the_version_while_a_fit_runs(gallery: Gallery, ball_field: ShapeField) -> None:
    scene_id = gallery.add(ball_field, status=Status.FITTING)
    _, before = tileset_of(gallery, scene_id)
    smaller = made_shape(ball((33, 28, 30), 12), origin=ORIGIN, voxel=VOXEL)
    old = gallery.client.get(f"/tiles3d/{scene_id}/content/0/0/0/0.glb")
    gallery.publish(scene_id, smaller)
    _, after = tileset_of(gallery, scene_id)
    new = gallery.client.get(f"/tiles3d/{scene_id}/content/0/0/0/0.glb")
    assert before["root"]["content"]["uri"] != after["root"]["content"]["uri"]
    assert (before["asset"]["tilesetVersion"], after["asset"]["tilesetVersion"]) == ("1", "2")
    assert old.headers["etag"] != new.headers["etag"]
    assert "max-age=2" in new.headers["cache-control"]
    assert np.ptp(positions_of(new.content)) < np.ptp(positions_of(old.content))


def test_a_tile_that_many_ask_for_is_made_once(
    live_gallery: Gallery, ball_field: ShapeField, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    mesh = ShapeTiles.mesh

    def counted(self: ShapeTiles, tile: Tile) -> Any:
        made.append(tile)
        return mesh(self, tile)

    monkeypatch.setattr(ShapeTiles, "mesh", counted)
    scene_id = live_gallery.add(ball_field)
    contents: list[bytes] = []

    def ask() -> None:
        contents.append(live_gallery.client.get(f"/tiles3d/{scene_id}/content/0/0/0/0.glb").content)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(contents) == 6
    assert len(set(contents)) == 1
    assert len(made) == 1
