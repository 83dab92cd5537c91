"""What is streamed in strips decodes to the same picture, with other people's decoders."""

import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import pyvips
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from acorn_svc.formats.strips import Strip, stream_png, stream_tiff

Stream = Callable[..., Iterator[bytes]]
STREAMS = [stream_png, stream_tiff]


def _picture(height: int, width: int, channels: int, dtype: type, seed: int = 0) -> Strip:
    limit = np.iinfo(dtype).max
    generator = np.random.default_rng(seed)
    picture: Strip = generator.integers(0, limit, (height, width, channels), dtype, endpoint=True)
    return picture


def _encode(stream: Stream, picture: Strip, rows: int) -> bytes:
    height, width, channels = picture.shape
    strips = (picture[top : top + rows] for top in range(0, height, rows))
    return b"".join(stream(strips, width, height, channels, picture.dtype.itemsize * 8))


def _decode(data: bytes) -> Strip:
    image = pyvips.Image.new_from_buffer(data, "", fail_on="warning")
    dtype = {"uchar": np.uint8, "ushort": np.uint16}[image.format]
    pixels = np.frombuffer(image.write_to_memory(), dtype)
    return pixels.reshape(image.height, image.width, image.bands)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_libvips_reads_the_same_picture(stream: Stream, dtype: type, channels: int) -> None:
    picture = _picture(150, 37, channels, dtype)
    assert np.array_equal(_decode(_encode(stream, picture, 64)), picture)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_pillow_reads_the_same_picture(stream: Stream, channels: int, mode: str) -> None:
    picture = _picture(70, 20, channels, np.uint8)
    with Image.open(io.BytesIO(_encode(stream, picture, 32))) as image:
        assert image.mode == mode
        assert np.array_equal(np.asarray(image).reshape(picture.shape), picture)


@pytest.mark.parametrize("stream", STREAMS)
@given(height=st.integers(1, 200), width=st.integers(1, 9), rows=st.integers(1, 210))
def test_the_cut_into_strips_does_not_show(stream: Stream, height: int, width: int, rows: int) -> None:
    picture = _picture(height, width, 3, np.uint8)
    assert np.array_equal(_decode(_encode(stream, picture, rows)), picture)


@pytest.mark.parametrize("stream", STREAMS)
def test_strips_of_views_and_of_no_rows(stream: Stream) -> None:
    picture = _picture(8, 5, 3, np.uint16)[::-1, ::-1]
    strips = [picture[:3], picture[3:3], picture[3:]]
    data = b"".join(stream(strips, 5, 8, 3, 16))
    assert np.array_equal(_decode(data), picture)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    "strip",
    [
        _picture(3, 5, 3, np.uint8),
        _picture(5, 5, 3, np.uint8),
        _picture(4, 6, 3, np.uint8),
        _picture(4, 5, 4, np.uint8),
        _picture(4, 5, 3, np.uint16),
    ],
    ids=["few rows", "many rows", "width", "channels", "depth"],
)
def test_a_wrong_strip_is_an_error(stream: Stream, strip: Strip) -> None:
    with pytest.raises(ValueError, match=r"rows"):
        list(stream([strip], 5, 4, 3, 8))


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("width", "height"), [(0, 1), (1, 0), (2**32, 1)])
def test_an_impossible_size_is_an_error(stream: Stream, width: int, height: int) -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        next(stream([], width, height, 3, 8))


@pytest.mark.parametrize(("height", "number"), [(65_500, 42), (65_600, 43)])
def test_a_tiff_grows_big_at_4_gib(height: int, number: int) -> None:
    width, channels = 65_536 // 4, 4
    head = next(stream_tiff([], width, height, channels, 8))
    assert (int.from_bytes(head[2:4], "little"), len(head) < 1 << 20) == (number, True)


def test_a_big_tiff_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acorn_svc.formats.strips.TIFF_MAX_BYTES", 1000)
    picture = _picture(130, 7, 4, np.uint16)
    data = _encode(stream_tiff, picture, 64)
    assert data[2] == 43
    assert np.array_equal(_decode(data), picture)


def test_a_stream_takes_one_strip_at_a_time() -> None:
    taken = []

    def strips() -> Iterator[Strip]:
        for number in range(4):
            taken.append(number)
            yield _picture(64, 64, 3, np.uint8, number)

    stream = stream_tiff(strips(), 64, 256, 3, 8)
    next(stream)
    assert taken == []
    next(stream)
    assert taken == [0]
