"""Pictures of any size as PNG or TIFF, strip by strip, in bounded memory.

A strip is `[rows, width, channels]`, uint8 or uint16, of any number of rows.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Strip = NDArray[np.uint8 | np.uint16]
Tag = tuple[int, int, list[int]]  # number, type, values
ByteOrder = Literal["<", ">"]

RGB_CHANNELS = 3

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
PNG_FILTER_UP = 2
PNG_COMPRESSION = 3
PNG_MAX_SIDE = 2**31 - 1

TIFF_ROWS_PER_STRIP = 64
TIFF_MAX_BYTES = 2**32 - 1
TIFF_DIRECTORY_BYTES = 1024  # more than a directory without its lists needs
TIFF_SHORT, TIFF_LONG, TIFF_LONG8 = 3, 4, 16
TIFF_CODES = {TIFF_SHORT: "H", TIFF_LONG: "I", TIFF_LONG8: "Q"}
TIFF_NO_COMPRESSION = 1
TIFF_BLACK_IS_ZERO, TIFF_RGB = 1, 2
TIFF_STRAIGHT_ALPHA = 2
TIFF_INTERLEAVED = 1


@dataclass(frozen=True)
class _Picture:
    """What the strips make together."""

    width: int
    height: int
    channels: int
    bit_depth: int

    @property
    def row_bytes(self) -> int:
        return self.width * self.channels * self.bit_depth // 8

    def checked(self, strips: Iterable[Strip]) -> Iterator[Strip]:
        """The strips, each of the right kind, of `height` rows in all."""
        rows = 0
        for strip in strips:
            self._check(strip)
            rows += len(strip)
            if rows > self.height:
                raise ValueError(f"there are more than {self.height} rows")
            if len(strip):
                yield strip
        if rows < self.height:
            raise ValueError(f"there are {rows} rows instead of {self.height}")

    def _check(self, strip: Strip) -> None:
        row = (self.width, self.channels)
        if strip.shape[1:] != row or strip.dtype.itemsize * 8 != self.bit_depth:
            wanted = f"{self.bit_depth} bit {row}"
            raise ValueError(f"a strip is {strip.dtype} {strip.shape}, its rows not {wanted}")


def stream_png(
    strips: Iterable[Strip], width: int, height: int, channels: int, bit_depth: int
) -> Iterator[bytes]:
    """The bytes of a PNG file, as the strips come.

    Args:
        strips: of a picture of `height` rows in all.
        width: in pixels.
        height: in pixels.
        channels: 1 to 4 (gray, gray and alpha, RGB, RGB and alpha; alpha straight).
        bit_depth: 8 or 16.

    Raises:
        ValueError: a strip is of another shape or dtype, rows are missing or too many, or the size
            is impossible.
    """
    picture = _Picture(width, height, channels, bit_depth)
    _check_size(picture, PNG_MAX_SIDE)
    header = struct.pack(">IIBBBBB", width, height, bit_depth, PNG_COLOUR_TYPES[channels], 0, 0, 0)
    yield PNG_SIGNATURE + _png_chunk(b"IHDR", header)
    compressor = zlib.compressobj(PNG_COMPRESSION)
    last = np.zeros((1, picture.row_bytes), np.uint8)
    for strip in picture.checked(strips):
        rows = _plain_rows(strip, ">")
        data = compressor.compress(_filtered(rows, last).tobytes())
        last = rows[-1:]
        if data:
            yield _png_chunk(b"IDAT", data)
    yield _png_chunk(b"IDAT", compressor.flush()) + _png_chunk(b"IEND", b"")


def stream_tiff(
    strips: Iterable[Strip], width: int, height: int, channels: int, bit_depth: int
) -> Iterator[bytes]:
    """The bytes of an uncompressed TIFF file, as the strips come; BigTIFF from 4 GiB on.

    Arguments and errors as for `stream_png`.
    """
    picture = _Picture(width, height, channels, bit_depth)
    _check_size(picture, TIFF_MAX_BYTES)
    yield _tiff_head(picture)
    for strip in picture.checked(strips):
        yield _plain_rows(strip, "<").tobytes()


def _check_size(picture: _Picture, largest: int) -> None:
    if not (1 <= picture.width <= largest and 1 <= picture.height <= largest):
        raise ValueError(f"a picture of {picture.width} x {picture.height} cannot be written")


def _plain_rows(strip: Strip, order: ByteOrder) -> NDArray[np.uint8]:
    """`[rows, bytes]`: the strip's samples in the given order of bytes."""
    samples = np.ascontiguousarray(strip, strip.dtype.newbyteorder(order))
    return samples.reshape(len(strip), -1).view(np.uint8)


def _filtered(rows: NDArray[np.uint8], last: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each row as its difference from the one above, its filter's number in front."""
    filtered = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = PNG_FILTER_UP
    filtered[:, 1:] = rows - np.concatenate([last, rows[:-1]])
    return filtered


def _png_chunk(name: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(name))
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def _tiff_head(picture: _Picture) -> bytes:
    """Header and directory; the pixels follow without a gap, so every offset is known here."""
    starts = range(0, picture.height, TIFF_ROWS_PER_STRIP)
    pixels = picture.row_bytes * picture.height
    big = pixels + 2 * 8 * len(starts) + TIFF_DIRECTORY_BYTES > TIFF_MAX_BYTES

    def head(first: int) -> bytes:
        offsets = [first + start * picture.row_bytes for start in starts]
        counts = [end - begin for begin, end in pairwise([*offsets, first + pixels])]
        return _tiff_directory(_tiff_tags(picture, offsets, counts, big), big)

    return head(len(head(0)))


def _tiff_tags(picture: _Picture, offsets: list[int], counts: list[int], big: bool) -> list[Tag]:
    """The tags of the only directory, ascending."""
    offset_type = TIFF_LONG8 if big else TIFF_LONG
    colours = TIFF_RGB if picture.channels >= RGB_CHANNELS else TIFF_BLACK_IS_ZERO
    tags = [
        (256, TIFF_LONG, [picture.width]),
        (257, TIFF_LONG, [picture.height]),
        (258, TIFF_SHORT, [picture.bit_depth] * picture.channels),
        (259, TIFF_SHORT, [TIFF_NO_COMPRESSION]),
        (262, TIFF_SHORT, [colours]),
        (273, offset_type, offsets),
        (277, TIFF_SHORT, [picture.channels]),
        (278, TIFF_LONG, [TIFF_ROWS_PER_STRIP]),
        (279, offset_type, counts),
        (284, TIFF_SHORT, [TIFF_INTERLEAVED]),
    ]
    has_alpha = picture.channels % 2 == 0
    return [*tags, (338, TIFF_SHORT, [TIFF_STRAIGHT_ALPHA])] if has_alpha else tags


def _tiff_directory(tags: list[Tag], big: bool) -> bytes:
    """The file up to its first pixel: header, directory, values too long for the directory."""
    if big:
        start, count, entry, word = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16), "<Q", "<HHQ", 8
    else:
        start, count, entry, word = struct.pack("<2sHI", b"II", 42, 8), "<H", "<HHI", 4
    entries, values = bytearray(struct.pack(count, len(tags))), bytearray()
    values_start = len(start) + len(entries) + len(tags) * (struct.calcsize(entry) + word) + word
    for tag, kind, numbers in tags:
        data = struct.pack(f"<{len(numbers)}{TIFF_CODES[kind]}", *numbers)
        entries += struct.pack(entry, tag, kind, len(numbers))
        if len(data) > word:
            entries += (values_start + len(values)).to_bytes(word, "little")
            values += data + bytes(-len(data) % word)
        else:
            entries += data.ljust(word, b"\0")
    return start + bytes(entries) + bytes(word) + bytes(values)
