"""Image files: every kind becomes the same plain array; everything else is one of our errors."""

import multiprocessing
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms

from acorn_svc.errors import AcornError, BadImage, LimitExceeded, UnsupportedMedia
from acorn_svc.formats.images import (
    Encoding,
    ImageHeader,
    ImageLimits,
    Pixels,
    encode_image,
    inspect_image,
    read_image,
)

BAD = Path(__file__).parents[4] / "shared" / "data" / "bad"
DECODE_SECONDS = 60
GRADIENT = np.stack(
    [*np.meshgrid(np.arange(0, 160, 4, np.uint8), np.arange(0, 96, 4, np.uint8))] * 2, axis=-1
)
GRADIENT[..., 3] = 255 - GRADIENT[..., 3]

JPEG_END = b"\xff\xd9"

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a Pillow image, or bytes, to a file whose name says nothing about its kind."""

    def write(content: Image.Image | bytes, kind: str = "PNG", **options: Any) -> Path:
        path = tmp_path / "picture.bin"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path, kind, **options)
        return path

    return write


def _pillow(channels: int) -> Image.Image:
    return Image.fromarray(GRADIENT[..., :channels].squeeze())


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("channels", [3, 4])
def test_lossless_files_are_read_as_they_are(save: Save, kind: str, channels: int) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    path = save(_pillow(channels), kind, **options)
    assert np.array_equal(read_image(path), GRADIENT[..., :channels])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 2])
def test_gray_stays_gray(save: Save, kind: str, channels: int) -> None:
    assert np.array_equal(read_image(save(_pillow(channels), kind)), GRADIENT[..., :channels])


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_is_close(save: Save, mode: str) -> None:
    image = _pillow(3).convert(mode)
    read = read_image(save(image, "JPEG", quality=98)).squeeze().astype(int)
    assert np.abs(read - np.asarray(image)).max() <= 8


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_stay_16_bits(save: Save, kind: Encoding, channels: int) -> None:
    pixels = GRADIENT[..., :channels].astype(np.uint16) * 257 + 3
    read = read_image(save(encode_image(pixels, kind)))
    assert read.dtype == np.uint16
    assert np.array_equal(read, pixels)


def test_big_endian_tiff(save: Save) -> None:
    pixels = (GRADIENT[..., 0] * np.uint16(200)).astype(">u2")
    image = Image.frombytes("I;16B", pixels.shape[::-1], pixels.tobytes())
    assert np.array_equal(read_image(save(image, "TIFF"))[..., 0], pixels)


def test_one_bit_and_palettes_become_8_bits(save: Save) -> None:
    bits = _pillow(1).point(lambda value: 255 * (value > 60)).convert("1")
    assert np.array_equal(read_image(save(bits))[..., 0], np.asarray(bits) * np.uint8(255))
    palette = _pillow(3).quantize(16)
    assert np.array_equal(read_image(save(palette)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_orientation_is_applied(save: Save, kind: str, orientation: int) -> None:
    quarters = np.zeros((32, 48, 3), np.uint8)
    quarters[:16, :24], quarters[:16, 24:], quarters[16:, :24] = 60, 120, 180
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(quarters), kind, exif=exif)
    turned = _upright(quarters, orientation)
    read = read_image(path)
    header = inspect_image(path)
    assert (header.height, header.width) == read.shape[:2] == turned.shape[:2]
    assert np.abs(read.astype(int) - turned).max() <= 8


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Orientation as the EXIF standard words it: where row 0 and column 0 are seen."""
    flipped = {2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}.get(orientation, pixels)
    transposed = pixels.swapaxes(0, 1)
    turned = {
        5: transposed, 6: transposed[:, ::-1], 7: transposed[::-1, ::-1], 8: transposed[::-1]
    }  # fmt: skip
    return turned.get(orientation, flipped)


def test_cmyk_becomes_srgb(save: Save) -> None:
    ink = np.zeros((8, 16, 4), np.uint8)
    ink[:, 8:, 3] = 255
    path = save(Image.fromarray(ink, "CMYK"), "TIFF")
    read = read_image(path)
    assert read.shape == (8, 16, 3)
    assert inspect_image(path).channels == 3
    assert (read[:, :8] > 250).all()
    assert (read[:, 8:] < 60).all()


def test_profiles_are_converted_to_srgb(save: Save) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    pixels = np.full((4, 4, 3), (200, 100, 50), np.uint8)
    plain = read_image(save(Image.fromarray(pixels)))
    unusable = read_image(save(Image.fromarray(pixels), icc_profile=lab))
    damaged = read_image(save(Image.fromarray(pixels), icc_profile=_wide_profile()[:200]))
    wide = read_image(save(Image.fromarray(pixels), icc_profile=_wide_profile()))
    assert np.array_equal(unusable, plain)
    assert np.array_equal(damaged, plain)
    # the same numbers in a profile whose red and green are swapped are the swapped colour
    assert np.abs(wide.astype(int) - plain[..., [1, 0, 2]]).max() <= 2


def _wide_profile() -> bytes:
    """The sRGB profile with red and green primaries swapped, under another name."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name in ("sRGB", "sRGB".encode("utf-16-be")):
        name = name if isinstance(name, bytes) else name.encode()
        profile = profile.replace(name, name.replace(b"s", b"x"))
    return profile.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")


def test_the_header_tells_what_reading_gives(save: Save) -> None:
    assert inspect_image(save(_pillow(4))) == ImageHeader(40, 24, 4, 8, "png")
    assert inspect_image(save(_pillow(1), "JPEG")) == ImageHeader(40, 24, 1, 8, "jpeg")


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("max_image_pixels", ImageLimits(max_pixels=40 * 24 - 1)),
        ("max_image_side", ImageLimits(max_side=39)),
        ("max_image_channels", ImageLimits(max_channels=2)),
    ],
)
def test_limits_are_told_by_name(save: Save, name: str, limits: ImageLimits) -> None:
    with pytest.raises(LimitExceeded) as caught:
        read_image(save(_pillow(3)), limits)
    assert caught.value.limit == name
    assert caught.value.value in (limits.max_pixels, limits.max_side, limits.max_channels)


def test_a_bomb_is_refused_by_its_header(save: Save) -> None:
    with pytest.raises(LimitExceeded) as caught:
        read_image(save(_png(50_000, 50_000, zlib.compress(bytes(50_001)))))
    assert (caught.value.limit, caught.value.value) == ("max_image_pixels", 256_000_000)


def test_several_frames_are_refused(save: Save) -> None:
    frames = [_pillow(3), _pillow(3).rotate(180)]
    for kind in ("TIFF", "WEBP"):
        with pytest.raises(LimitExceeded) as caught:
            read_image(save(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert caught.value.limit == "max_image_frames"


def test_overviews_are_not_frames(save: Save) -> None:
    image = pyvips.Image.new_from_array(np.ascontiguousarray(GRADIENT[..., :3]))
    pyramid = (
        image.resize(8).cast("uchar").tiffsave_buffer(tile=True, tile_width=32, tile_height=32, pyramid=True)
    )
    assert read_image(save(pyramid)).shape == (192, 320, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_no_cut_file_is_read(save: Save, kind: str) -> None:
    whole = save(_pillow(3), kind).read_bytes()
    for length in range(0, len(whole), 7):
        with pytest.raises((BadImage, UnsupportedMedia)):
            read_image(save(whole[:length]))
    with pytest.raises(BadImage):
        read_image(save(whole[:-1]))


@pytest.mark.parametrize("progressive", [False, True])
def test_an_end_mark_makes_no_jpeg_of_a_part(save: Save, progressive: bool) -> None:
    whole = save(_pillow(3), "JPEG", progressive=progressive).read_bytes()
    for kept in (0.6, 0.75, 0.95):
        with pytest.raises(BadImage):
            read_image(save(whole[: int(kept * len(whole))] + JPEG_END))


def test_stray_bytes_in_a_jpeg_do_not_matter(save: Save) -> None:
    whole = save(_pillow(3), "JPEG").read_bytes()
    tables = whole.index(b"\xff\xdb")
    assert np.array_equal(read_image(save(whole[:tables] + b"abc" + whole[tables:])), read_image(save(whole)))


def test_an_empty_file_is_a_bad_image(save: Save) -> None:
    with pytest.raises(BadImage, match="empty"):
        read_image(save(b""))


@pytest.mark.parametrize(
    "content",
    [b"hello", b"GIF89a" + bytes(99), b"BM" + bytes(99), b"<svg xmlns='...'/>", bytes(999)],
)
def test_other_kinds_are_refused_by_content(save: Save, content: bytes) -> None:
    with pytest.raises(UnsupportedMedia, match="JPEG, PNG, WebP and TIFF are read"):
        read_image(save(content))


def test_floating_point_is_refused_with_its_name(save: Save) -> None:
    image = Image.fromarray(GRADIENT[..., 0].astype(np.float32))
    with pytest.raises(BadImage, match="floating-point"):
        inspect_image(save(image, "TIFF"))


def test_no_error_tells_a_path(save: Save) -> None:
    path = save(_png(8, 8, b"not deflate"))
    with pytest.raises(BadImage) as caught:
        read_image(path)
    assert path.name not in str(caught.value)


def _png(width: int, height: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_lossless_encodings_come_back(save: Save, kind: Encoding, channels: int) -> None:
    pixels = np.ascontiguousarray(GRADIENT[::-1, ..., :channels])
    assert np.array_equal(read_image(save(encode_image(pixels, kind))), pixels)


@pytest.mark.parametrize("kind", ["jpg", "webp"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lossy_encodings_come_close(save: Save, kind: Encoding, dtype: type) -> None:
    pixels = GRADIENT[..., [0, 0, 0]]
    scaled = pixels.astype(dtype) * (257 if dtype is np.uint16 else 1)
    read = read_image(save(encode_image(scaled, kind, quality=95)))
    assert np.abs(read.astype(int) - pixels).max() <= 8


def test_jpeg_shows_transparency_on_white(save: Save) -> None:
    read = read_image(save(encode_image(np.zeros((8, 8, 4), np.uint8), "jpg")))
    assert (read == 255).all()


def test_quality_costs_bytes() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for kind in ("jpg", "webp"):
        sizes = [len(encode_image(noise, kind, quality)) for quality in (20, 50, 90)]
        assert sizes == sorted(sizes)


def test_files_tell_nothing_about_the_machine() -> None:
    for kind in ("jpg", "png", "webp", "tif"):
        assert encode_image(GRADIENT, kind) == encode_image(GRADIENT, kind)


def test_a_picture_too_large_for_its_format_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot be a webp file"):
        encode_image(np.zeros((1, 16_384, 1), np.uint8), "webp")


# Verdicts by hand, before the decoder: ok, or the code of the error.
VERDICTS = {
    "pngsuite/x*.png": {"bad_image", "unsupported_media"},
    "pngsuite/[!x]*.png": {"ok"},
    "images/*.bmp": {"unsupported_media"},
    "images/*.gif": {"unsupported_media"},
    "images/*.j2k": {"unsupported_media"},
    "images/*.jp2": {"unsupported_media"},
    "images/pillow_crash-*.tif": {"bad_image"},
    "images/pillow_oom-*.tif": {"bad_image"},
    "images/pillow_truncated_*.png": {"bad_image"},
    "images/pillow_truncated_jpeg.jpg": {"bad_image"},
    "images/pillow_broken*.png": {"bad_image"},
    "images/pillow_16bit.s.tif": {"bad_image"},
    "images/pillow_16bit.[!s]*.tif": {"ok"},
    "images/pillow_tiff_*": {"ok", "bad_image"},
    "images/pillow_no_rows_per_strip.tif": {"ok", "bad_image"},
    "images/pillow_ifd_tag_type.tiff": {"ok"},
    "images/pillow_tiff_strip_raw.tif": {"ok"},
    "images/pillow_tiff_strip_planar_raw_with_overviews.tif": {"ok"},
    "images/pillow_[!bt]*.jpg": {"ok"},
    "images/pillow_broken_exif_dpi.jpg": {"ok"},
    "images/pillow_truncated_[ae]*.jpg": {"ok"},
    "images/flat_99mp_1mb.jpg": {"ok"},
}


def _verdict(path: Path) -> str:
    try:
        pixels = read_image(path)
    except AcornError as error:
        return error.code
    return "ok" if pixels.ndim == 3 and pixels.dtype in (np.uint8, np.uint16) else "odd"


@pytest.mark.skipif(not BAD.is_dir(), reason=f"there is no folder {BAD.name!r} of bad files beside us")
def test_odd_and_broken_files_get_their_verdicts() -> None:
    """In a process of their own, so that a crash would be seen as one."""
    expected = {
        path: verdicts for pattern, verdicts in VERDICTS.items() for path in sorted(BAD.glob(pattern))
    }
    files = [path for folder in ("images", "pngsuite") for path in (BAD / folder).iterdir()]
    assert set(files) == set(expected)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as child:
        found = dict(zip(files, child.map(_verdict, files, timeout=DECODE_SECONDS), strict=True))
    wrong = {path.name: found[path] for path in files if found[path] not in expected[path]}
    assert wrong == {}
