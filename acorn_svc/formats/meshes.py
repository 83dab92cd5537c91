"""Mesh files to triangles: PLY, STL, OBJ, OFF and GLB.

Kinds are told by content, never by name; no other file is ever opened. What a header says is held
against the bytes that are there before memory is taken for it. Nothing comes back unchecked: every
coordinate is a number, every index that of a vertex, and the faces agree on which side is out.

The readers are our own, for damage has to be an error: trimesh, which the tests read and write with
too, takes cut and contradicting files for smaller ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acorn_svc.errors import BadMesh, LimitExceeded, UnsupportedMedia
from acorn_svc.field.mesh import Mesh, Texture
from acorn_svc.formats import images
from acorn_svc.formats.glb import Glb, read_glb, texture_pixels, to_linear, to_srgb
from acorn_svc.formats.mesh_pieces import (
    Bytes,
    Floats,
    MeshFormat,
    MeshLimits,
    Piece,
    decode_text,
)
from acorn_svc.formats.mesh_repair import repair
from acorn_svc.formats.obj import read_obj
from acorn_svc.formats.off import START as OFF_START
from acorn_svc.formats.off import read_off
from acorn_svc.formats.ply import read_ply
from acorn_svc.formats.stl import is_binary_stl, read_stl

SNIFF_BYTES = 65_536
OBJ_WORDS = {
    "v", "vt", "vn", "vp", "f", "l", "p", "o", "g", "s", "mg", "mtllib", "usemtl", "maplib", "usemap",
}  # fmt: skip
OTHER_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG", images.PNG_SIGNATURE: "PNG", b"RIFF": "RIFF (WebP)", b"II*\0": "TIFF",
    b"MM\0*": "TIFF", b"PK\x03\x04": "ZIP (3MF, USDZ or another)", b"Kaydara FBX": "FBX",
    b"DRACO": "Draco", b"BLENDER": "Blender", b"#VRML": "VRML", b"\x1f\x8b": "gzip",
    b"PXR-USDC": "USD", b"#usda": "USD", b"\x89HDF": "HDF5", **images.OTHER_SIGNATURES,
}  # fmt: skip
MANY_MATERIALS = "the colours of {} are kept at the vertices only: the mesh has several materials"


@dataclass(frozen=True, eq=False)
class MeshReading:
    """A mesh, the format of its file, and a short sentence for everything that was repaired."""

    mesh: Mesh
    format: MeshFormat
    repairs: list[str]


@dataclass(frozen=True)
class MeshHeader:
    """What `read_mesh` returns, in numbers.

    Attributes:
        vertices, faces: how many there are after repairs.
        format: of the file.
        has_colours: whether there are colours of vertices or a texture.
    """

    vertices: int
    faces: int
    format: MeshFormat
    has_colours: bool


def read_mesh(source: Path | bytes, limits: MeshLimits | None = None) -> MeshReading:
    """The triangles of a file or its bytes, all its parts together, coordinates as they are.

    Polygons are cut into triangles, colours of faces given to their corners, equal vertices joined,
    and faces turned so that they agree: see `mesh_repair`. Normals are not kept.

    Raises:
        BadMesh: the file is empty, damaged or cut, or holds no surface.
        UnsupportedMedia: it is not PLY, STL, OBJ, OFF or GLB.
        LimitExceeded: it is larger than `limits` allow.
        OSError: it cannot be read.
    """
    limits = limits or MeshLimits()
    content = source.read_bytes() if isinstance(source, Path) else source
    kind = _sniff(content)
    pieces, glb = _READERS[kind](content, limits)
    said = [repaired for piece in pieces for repaired in piece.repairs]
    mesh = _joined([_spread(piece) for piece in pieces], glb, said)
    limits.check(len(mesh.vertices), len(mesh.faces))
    repaired, sentences = repair(mesh, tell_joined=kind != "stl")  # an STL has no joined vertices
    return MeshReading(repaired, kind, said + sentences)


def inspect_mesh(source: Path | bytes, limits: MeshLimits | None = None) -> MeshHeader:
    """What `read_mesh` returns, in numbers. Reads all of the file; raises as `read_mesh` does."""
    reading = read_mesh(source, limits)
    mesh = reading.mesh
    has_colours = mesh.colours is not None or mesh.texture is not None
    return MeshHeader(len(mesh.vertices), len(mesh.faces), reading.format, has_colours)


def _sniff(content: bytes) -> MeshFormat:
    if not content:
        raise BadMesh("The file is empty.")
    if content.startswith(b"glTF"):
        return "glb"
    if re.match(rb"ply[ \t]*[\r\n]", content):
        return "ply"
    if is_binary_stl(content):
        return "stl"
    for signature, name in OTHER_SIGNATURES.items():
        if content.startswith(signature):
            raise _unsupported(f"This is a {name} file")
    text = decode_text(content[:SNIFF_BYTES])
    if text.lstrip().lower().startswith("solid"):
        return "stl"
    if OFF_START.match(text):
        return "off"
    if re.match(r'\s*\{\s*"', text) and '"asset"' in text:
        raise _unsupported("This is a glTF file without its data: a GLB file holds everything in one")
    if _first_word(text) in OBJ_WORDS:
        return "obj"
    raise _unsupported("This is not a mesh of a known kind")


def _unsupported(what: str) -> UnsupportedMedia:
    return UnsupportedMedia(f"{what}; PLY, STL, OBJ, OFF and GLB are read.")


def _first_word(text: str) -> str:
    """The first word that isn't part of a comment."""
    match = re.match(r"(?:\s|#[^\n\r]*(?:[\n\r]|$))*(\S+)", text)
    return match[1] if match else ""


def _alone(read: Callable[[bytes, MeshLimits], list[Piece]]) -> _Reader:
    return lambda content, limits: (read(content, limits), None)


_Reader = Callable[[bytes, MeshLimits], tuple[list[Piece], Glb | None]]
_READERS: dict[MeshFormat, _Reader] = {
    "ply": _alone(read_ply), "stl": _alone(read_stl), "obj": _alone(read_obj), "off": _alone(read_off),
    "glb": read_glb,
}  # fmt: skip


def _spread(piece: Piece) -> Piece:
    """Colours of faces as colours of vertices: each face gets corners of its own."""
    if piece.face_colours is None or piece.colours is not None:
        return piece
    corners = piece.faces.ravel()
    faces = np.arange(len(corners)).reshape(-1, 3)
    return Piece(piece.vertices[corners], faces, np.repeat(piece.face_colours, 3, axis=0))


def _joined(pieces: list[Piece], glb: Glb | None, said: list[str]) -> Mesh:
    sizes = np.array([len(piece.vertices) for piece in pieces])
    starts = np.cumsum(sizes) - sizes
    vertices = np.concatenate([piece.vertices for piece in pieces])
    faces = np.concatenate([piece.faces + start for piece, start in zip(pieces, starts, strict=True)])
    if glb is not None and (one := _one_texture(pieces)):
        coordinates: NDArray[np.float32] = np.concatenate(
            [p.coordinates for p in pieces if p.coordinates is not None]
        )
        texture = Texture(coordinates, texture_pixels(glb, *one))
        return Mesh(vertices, faces.astype(np.int32), texture=texture)
    return Mesh(vertices, faces.astype(np.int32), colours=_vertex_colours(pieces, glb, said))


def _one_texture(pieces: list[Piece]) -> tuple[int, tuple[float, float, float]] | None:
    """The texture of all pieces, when it is the same and nothing else colours them."""
    found = {piece.image for piece in pieces}
    if len(found) == 1 and all(piece.colours is None for piece in pieces):
        return found.pop()
    return None


def _vertex_colours(pieces: list[Piece], glb: Glb | None, said: list[str]) -> Bytes | None:
    """Colours at the vertices, white where there are none; None when there are none at all."""
    textures = {piece.image for piece in pieces if piece.image is not None}
    if glb is not None and len(textures) > glb.limits.max_textures:
        most = glb.limits.max_textures
        message = f"The mesh has {len(textures)} textures; at most {most} are allowed."
        raise LimitExceeded(message, limit="max_mesh_textures", value=most)
    if glb is not None and textures:
        words = "1 texture" if len(textures) == 1 else f"{len(textures)} textures"
        said.append(MANY_MATERIALS.format(words))
        for image in textures:
            pixels = texture_pixels(glb, *image)
            for piece in pieces:
                if piece.image == image and piece.coordinates is not None:
                    seen = _sampled(pixels, piece.coordinates)
                    piece.colours = seen if piece.colours is None else _product(seen, piece.colours)
    if all(piece.colours is None for piece in pieces):
        return None
    white = [np.full((len(piece.vertices), 3), 255, np.uint8) for piece in pieces]
    pairs = zip(pieces, white, strict=True)
    return np.concatenate([plain if piece.colours is None else piece.colours for piece, plain in pairs])


def _sampled(pixels: Bytes, coordinates: NDArray[np.float32]) -> Bytes:
    """The nearest pixel at each coordinate; the image repeats."""
    height, width = pixels.shape[:2]
    u, v = np.mod(coordinates.astype(np.float64), 1.0).T
    # row 0 is at v = 1, and v = 0 is v = 1 of the next repeat
    row = np.minimum(((1.0 - v) * height).astype(np.int64), height - 1)
    column = np.minimum((u * width).astype(np.int64), width - 1)
    return np.asarray(pixels[row, column], np.uint8)


def _product(a: Bytes, b: Bytes) -> Bytes:
    linear: Floats = to_linear(a) * to_linear(b)
    return to_srgb(linear)
