"""Image files to arrays and back.

Kinds are told by content, never by name, and only four get as far as a decoder: JPEG, PNG, WebP
and TIFF. Limits are checked from the header, before any pixel is decoded. libvips decodes, from top
to bottom wherever the file allows it, so that memory is that of the array.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, cast

import numpy as np
import pyvips
import simplejpeg
from numpy.typing import NDArray

from acorn_svc.errors import BadImage, LimitExceeded, UnsupportedMedia

Source = Path | bytes
Pixels = NDArray[np.uint8 | np.uint16]
Format = Literal["jpeg", "png", "webp", "tiff"]
T = TypeVar("T")
Encoding = Literal["jpg", "png", "webp", "tif"]

SNIFF_BYTES = 16
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNK_OVERHEAD = 12
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
OTHER_SIGNATURES = {
    b"GIF8": "GIF", b"BM": "BMP", b"\0\0\0\x0cjP": "JPEG 2000", b"\xffO\xffQ": "JPEG 2000",
    b"%PDF": "PDF", b"8BPS": "Photoshop", b"v/1\x01": "OpenEXR", b"\xff\n": "JPEG XL",
    b"\0\0\0\x0cJXL": "JPEG XL", b"#?RADIANCE": "Radiance HDR", b"<svg": "SVG", b"<?xml": "XML",
}  # fmt: skip
MAX_OVERVIEWS = 32
JPEG_PIXELS_PER_BYTE = 64 * 8  # every block of 8 x 8 pixels takes a bit
BIT_DEPTHS = {"uchar": 8, "ushort": 16}
OTHER_SAMPLES = {
    "char": "8-bit signed", "short": "16-bit signed", "int": "32-bit signed", "uint": "32-bit",
    "float": "floating-point", "double": "floating-point",
}  # fmt: skip
GRAY = ("b-w", "grey16")
RGB = ("srgb", "rgb", "rgb16")
FIRST_ROTATED = 5  # EXIF orientations from here on swap width and height
SRGB_NAMES = (b"sRGB IEC61966-2.1", "sRGB IEC61966-2.1".encode("utf-16-be"))
RGB_BANDS = 3
WHITE = 255
FINE_QUALITY = 90  # of JPEG; from here on colour is as fine as brightness
OUT_OF_MEMORY = "out of memory"
DATA_END_EARLY = "premature end of data segment"
DAMAGED = "The image is damaged or cut short."


@dataclass(frozen=True)
class ImageLimits:
    """The largest image that is decoded.

    Attributes:
        max_pixels: width times height.
        max_side: width and height, in pixels.
        max_channels: channels, alpha included.
        max_frames: pages or frames of full size (a TIFF's overviews don't count); the first is read.
    """

    max_pixels: int = 256_000_000
    max_side: int = 65_536
    max_channels: int = 4
    max_frames: int = 1


@dataclass(frozen=True)
class ImageHeader:
    """What `read_image` will return, told from the header alone.

    Attributes:
        width, height: in pixels, as seen (EXIF orientation applied).
        channels: 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
        bit_depth: 8 or 16.
        format: of the file.
    """

    width: int
    height: int
    channels: int
    bit_depth: int
    format: Format


def read_image(source: Source, limits: ImageLimits | None = None) -> Pixels:
    """`[h, w, c]` uint8 or uint16: sRGB or gray as seen, alpha straight; of a file or its bytes.

    EXIF orientation is applied, colour profiles and CMYK are converted to sRGB, palettes and 1-bit
    images become 8-bit.

    Raises:
        BadImage: the file is empty, damaged or cut, or its samples aren't unsigned 8 or 16 bit
            gray, RGB or CMYK.
        UnsupportedMedia: it is not JPEG, PNG, WebP or TIFF.
        LimitExceeded: it is larger than `limits` allow.
        OSError: it cannot be read.
    """
    kind = _sniff(source)
    image = _open(source, kind)
    header = _header(image, kind, source, limits or ImageLimits())
    if kind == "png":
        _check_png_end(source)
    if kind == "jpeg":
        _check_jpeg_length(source, image)
        return _guarded(lambda: _decode_jpeg(source, header))
    return _guarded(lambda: _decode(image, header))


def inspect_image(source: Source, limits: ImageLimits | None = None) -> ImageHeader:
    """What `read_image` would return, without decoding.

    Raises as `read_image` does, but doesn't see damage in the pixels.
    """
    kind = _sniff(source)
    return _header(_open(source, kind), kind, source, limits or ImageLimits())


def encode_image(array: Pixels, format: Encoding, quality: int = 85) -> bytes:
    """A picture as a file in memory, without metadata.

    Args:
        array: `[h, w, c]` uint8 or uint16, 1 to 4 channels, straight alpha. JPEG and WebP get 8
            bits; JPEG shows transparent pictures on white.
        format: `jpg`, `png`, `webp` or `tif`.
        quality: 1 to 100, of JPEG and WebP.

    Raises:
        ValueError: the picture is larger than the format allows.
    """
    try:
        return _ENCODERS[format](array, quality)
    except (pyvips.Error, ValueError) as error:
        height, width = array.shape[:2]
        raise ValueError(f"a picture of {width} x {height} cannot be a {format} file") from error


def _allow_only(*loaders: str) -> None:
    """Switches off every loader of the library but these."""
    pyvips.operation_block_set("VipsForeignLoad", True)
    for loader in loaders:
        pyvips.operation_block_set(f"VipsForeignLoad{loader}", False)


# For the whole process, at import: no other code path may reach the other loaders either.
_allow_only("Jpeg", "Png", "Webp", "Tiff")
# The library remembers results by file name, and a name may get other content.
pyvips.cache_set_max(0)


def _bytes_of(source: Source) -> BinaryIO:
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)


def _sniff(source: Source) -> Format:
    with _bytes_of(source) as file:
        start = file.read(SNIFF_BYTES)
    if not start:
        raise BadImage("The file is empty.")
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if start.startswith(PNG_SIGNATURE):
        return "png"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "webp"
    if start.startswith(TIFF_SIGNATURES):
        return "tiff"
    raise UnsupportedMedia(f"{_name_of(start)}; JPEG, PNG, WebP and TIFF are read.")


def _name_of(start: bytes) -> str:
    for signature, name in OTHER_SIGNATURES.items():
        if start.startswith(signature):
            return f"This is a {name} file"
    return "This is not an image of a known kind"


def _open(source: Source, kind: Format, page: int = 0) -> pyvips.Image:
    return _guarded(lambda: _load(source, kind, page))


def _load(source: Source, kind: Format, page: int = 0, fail_on: str = "error") -> pyvips.Image:
    """The image, whose pixels are decoded when they are asked for; raises the library's own error."""
    options: dict[str, Any] = {"access": "sequential", "fail_on": fail_on}
    if kind in ("tiff", "webp"):
        options["page"] = page
    name, place = (f"{kind}load", str(source)) if isinstance(source, Path) else (f"{kind}load_buffer", source)
    return cast(pyvips.Image, getattr(pyvips.Image, name)(place, **options))


def _guarded(decode: Callable[[], T]) -> T:
    """All errors of the library but one mean the same; its words, which hold paths, stay here."""
    try:
        return decode()
    except pyvips.Error as error:
        if OUT_OF_MEMORY in str(error):
            raise MemoryError from error
        raise BadImage(DAMAGED) from error


def _header(image: pyvips.Image, kind: Format, source: Source, limits: ImageLimits) -> ImageHeader:
    """Checks everything that can be known before decoding."""
    _check_size(image, limits)
    if image.format not in BIT_DEPTHS:
        samples = OTHER_SAMPLES.get(image.format, image.format)
        raise BadImage(f"The image has {samples} samples; unsigned 8 and 16 bit are read.")
    if image.interpretation not in (*GRAY, *RGB, "cmyk"):
        message = f"The image's colours ({image.interpretation}) are not gray, RGB or CMYK."
        raise BadImage(message)
    frames = _frames(image, kind, source)
    if frames > limits.max_frames:
        message = f"The file holds {frames} images; at most {limits.max_frames} may be there."
        raise LimitExceeded(message, limit="max_image_frames", value=limits.max_frames)
    width, height = image.width, image.height
    if _orientation(image) >= FIRST_ROTATED:
        width, height = height, width
    return ImageHeader(width, height, _channels(image), BIT_DEPTHS[image.format], kind)


def _check_size(image: pyvips.Image, limits: ImageLimits) -> None:
    facts = (
        ("max_image_side", "pixels on a side", max(image.width, image.height), limits.max_side),
        ("max_image_pixels", "pixels", image.width * image.height, limits.max_pixels),
        ("max_image_channels", "channels", image.bands, limits.max_channels),
    )
    for name, words, found, allowed in facts:
        if found > allowed:
            message = f"The image has {found} {words}; at most {allowed} are allowed."
            raise LimitExceeded(message, limit=name, value=allowed)


def _frames(image: pyvips.Image, kind: Format, source: Source) -> int:
    """Images in the file; a TIFF's overviews, each at most half of the last, are not counted."""
    pages = int(_get(image, "n-pages") or 1)
    if kind != "tiff" or pages > MAX_OVERVIEWS:
        return pages
    frames, last = 1, image
    for page in range(1, pages):
        overview = _open(source, kind, page)
        half = 2 * overview.width <= last.width + 2 and 2 * overview.height <= last.height + 2
        frames, last = (frames, overview) if half else (frames + 1, last)
    return frames


def _get(image: pyvips.Image, name: str) -> Any:
    return image.get(name) if image.get_typeof(name) else None


def _orientation(image: pyvips.Image) -> int:
    return int(_get(image, "orientation") or 1)


def _channels(image: pyvips.Image) -> int:
    if image.interpretation == "cmyk":
        return 3
    if image.interpretation in GRAY:
        return 1 + int(image.bands > 1)
    return int(image.bands)


def _check_png_end(source: Source) -> None:
    """Walks the chunks: the decoder itself doesn't miss an end that holds no pixels."""
    with _bytes_of(source) as file:
        size = file.seek(0, io.SEEK_END)
        position = len(PNG_SIGNATURE)
        while position + PNG_CHUNK_OVERHEAD <= size:
            file.seek(position)
            length, name = int.from_bytes(file.read(4)), file.read(4)
            position += PNG_CHUNK_OVERHEAD + length
            if name == b"IEND" and position <= size:
                return
    raise BadImage(DAMAGED)


def _check_jpeg_length(source: Source, image: pyvips.Image) -> None:
    """Refuses a size that the data cannot fill; the decoder would make the rest up, in gray."""
    with _bytes_of(source) as file:
        size = file.seek(0, io.SEEK_END)
    if image.width * image.height > size * JPEG_PIXELS_PER_BYTE:
        raise BadImage(DAMAGED)


def _decode_jpeg(source: Source, header: ImageHeader) -> Pixels:
    """Refuses data that end too early, of which the decoder makes up the rest and only warns.

    Other warnings don't matter for the pixels, but the first hides those after it.
    """
    try:
        return _decode(_load(source, "jpeg", fail_on="warning"), header)
    except pyvips.Error as error:
        if DATA_END_EARLY in str(error):
            raise
        return _decode(_load(source, "jpeg"), header)


def _decode(image: pyvips.Image, header: ImageHeader) -> Pixels:
    return _array(_upright(_to_srgb(image)), header)


def _to_srgb(image: pyvips.Image) -> pyvips.Image:
    """The image as gray or sRGB, alpha kept. An unreadable profile is ignored, as browsers do."""
    depth = BIT_DEPTHS[image.format]
    if _has_usable_profile(image):
        with contextlib.suppress(pyvips.Error):
            converted = image.icc_transform("srgb", embedded=True, depth=depth)
            return _gray_again(converted) if image.interpretation in GRAY else converted
    if image.interpretation == "cmyk":
        return image.icc_transform("srgb", input_profile="cmyk", depth=depth)
    return image


def _has_usable_profile(image: pyvips.Image) -> bool:
    """Whether there is a profile for this kind of colours that says something other than sRGB."""
    profile = _get(image, "icc-profile-data")
    if profile is None or any(name in profile for name in SRGB_NAMES):
        return False
    space = {"cmyk": b"CMYK", "b-w": b"GRAY", "grey16": b"GRAY"}.get(image.interpretation, b"RGB ")
    return bool(profile[16:20] == space)


def _gray_again(image: pyvips.Image) -> pyvips.Image:
    """One channel of three equal ones, and alpha if there is one."""
    return image[0].bandjoin(image[3]) if image.bands > RGB_BANDS else image[0]


def _upright(image: pyvips.Image) -> pyvips.Image:
    """EXIF orientation applied. Turning needs the whole image, so only then it is decoded first."""
    return image.copy_memory().autorot() if _orientation(image) > 1 else image


def _array(image: pyvips.Image, header: ImageHeader) -> Pixels:
    image = image[: header.channels] if image.bands > header.channels else image
    shape = (header.height, header.width, header.channels)
    content = image.write_to_memory()
    if header.bit_depth == BIT_DEPTHS["ushort"]:
        return np.frombuffer(content, np.uint16).reshape(shape)
    return np.frombuffer(content, np.uint8).reshape(shape)


def _to_vips(array: Pixels) -> pyvips.Image:
    deep = array.dtype == np.uint16
    names = ("grey16", "rgb16") if deep else ("b-w", "srgb")
    image = pyvips.Image.new_from_array(np.ascontiguousarray(array))
    return image.copy(interpretation=names[array.shape[2] >= RGB_BANDS])


def _to_8_bit(array: Pixels) -> Pixels:
    if array.dtype == np.uint8:
        return array
    return ((array.astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8)


def _encode_jpeg(array: Pixels, quality: int) -> bytes:
    """Not through libvips, which takes three times longer for a tile."""
    pixels = _on_white(_to_8_bit(array))
    space, sampling = ("RGB", "420") if pixels.shape[2] == RGB_BANDS else ("GRAY", "Gray")
    if space == "RGB" and quality >= FINE_QUALITY:
        sampling = "444"
    return cast(bytes, simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, space, sampling))


def _on_white(array: Pixels) -> Pixels:
    """Without alpha."""
    image = _to_vips(array)
    return np.atleast_3d(image.flatten(background=WHITE).numpy()) if image.hasalpha() else array


def _encode_png(array: Pixels, _quality: int) -> bytes:
    return bytes(_to_vips(array).pngsave_buffer(compression=3, keep="none"))


def _encode_webp(array: Pixels, quality: int) -> bytes:
    return bytes(_to_vips(_to_8_bit(array)).webpsave_buffer(Q=quality, effort=0, keep="none"))


def _encode_tiff(array: Pixels, _quality: int) -> bytes:
    return bytes(_to_vips(array).tiffsave_buffer(compression="deflate", keep="none"))


_ENCODERS: dict[str, Callable[[Pixels, int], bytes]] = {
    "jpg": _encode_jpeg, "png": _encode_png, "webp": _encode_webp, "tif": _encode_tiff,
}  # fmt: skip
