"""Laws of the IIIF request syntax: every text is a picture within the limits, or a BadRequest."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acorn_svc.api.iiif_syntax import (
    Limits,
    Picture,
    fitted,
    nearest,
    parse,
    parse_region,
    parse_rotation,
    parse_size,
)
from acorn_svc.api.rendition import FORMATS, QUALITIES, Region
from acorn_svc.errors import BadRequest

PICTURE = Picture(1000, 700, "color")
LIMITS = Limits(4096, 4096, 4_000_000)
SMALL_LIMITS = Limits(300, 400, 60_000)
NUMBERS = ["0", "1", "7", "100", "699", "1000", "5000", "0.5", "33.3333", "99999999999999999999"]
NONSENSE = [
    "",
    "-1",
    "+1",
    "1e308",
    "1e5",
    "nan",
    "NaN",
    "inf",
    "٣",
    "１",
    "0x10",
    " 1",
    "1 ",
    "1_0",
]
NONSENSE += ["9" * 4096, "1,2", "./..", "%", "1.", ".5", "\x00", "é", "!", "^", "max ", "FULL"]

sides = st.integers(1, 5000) | st.integers(1, 100_000)
pictures = st.builds(Picture, sides, sides, st.sampled_from(QUALITIES[:2]))
limits = st.builds(Limits, *[st.integers(1, 20_000)] * 2, st.integers(1, 10_000_000))

counts = st.integers(0, 3000).map(str)
percents = st.decimals(0, 120, places=2).map(str)
regions = st.one_of(
    st.sampled_from(["full", "square"]),
    st.tuples(*[counts] * 4).map(",".join),
    st.tuples(*[percents] * 4).map(lambda four: "pct:" + ",".join(four)),
)
sizes = st.builds(
    "{}{}".format,
    st.sampled_from(["", "^"]),
    st.one_of(
        st.just("max"),
        counts.map("{},".format),
        counts.map(",{}".format),
        st.builds("{},{}".format, counts, counts),
        st.builds("!{},{}".format, counts, counts),
        percents.map("pct:{}".format),
    ),
)
rotations = st.builds("{}{}".format, st.sampled_from(["", "!"]), st.decimals(0, 360, places=3))
files = st.builds("{}.{}".format, st.sampled_from(["default", *QUALITIES]), st.sampled_from(FORMATS))


@st.composite
def damaged(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> str:
    """A text with a piece of it replaced by nonsense, or as it was."""
    text = draw(texts)
    start, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
    broken = text[:start] + draw(st.sampled_from(NUMBERS + NONSENSE) | st.text()) + text[end:]
    return draw(st.sampled_from([text, broken]))


@given(damaged(regions), damaged(sizes), damaged(rotations), damaged(files), pictures, limits)
def test_a_request_is_a_picture_within_the_limits_or_refused(
    region: str, size: str, rotation: str, file: str, picture: Picture, limits: Limits
) -> None:
    try:
        wanted = parse(region, size, rotation, file, picture, limits)
    except BadRequest:
        return
    source, target = wanted.rendition.region, wanted.rendition.size
    assert source.x >= 0
    assert source.y >= 0
    assert min(source.size) >= 1
    assert source.x + source.width <= picture.width
    assert source.y + source.height <= picture.height
    assert min(target) >= 1
    assert limits.allow(target)
    assert 0 <= wanted.rendition.rotation < 360
    if "^" not in size:
        assert target[0] <= source.width
        assert target[1] <= source.height


@given(regions, sizes, rotations, files, pictures, limits)
def test_the_canonical_form_means_the_same_and_is_its_own_canonical_form(
    region: str, size: str, rotation: str, file: str, picture: Picture, limits: Limits
) -> None:
    try:
        wanted = parse(region, size, rotation, file, picture, limits)
    except BadRequest:
        return
    assert parse(*wanted.canonical.split("/"), picture, limits) == wanted


@given(st.tuples(sides, sides), limits)
def test_fitted_is_within_the_limits_and_its_short_side_cannot_grow(
    size: tuple[int, int], limits: Limits
) -> None:
    width, height = fitted(size, limits)
    assert limits.allow((width, height))
    short, long = sorted(size)
    grown = min(width, height) + 1
    larger = (grown, -(-grown * long // short))
    assert not limits.allow(larger if size[0] <= size[1] else larger[::-1])


@given(st.fractions(0, 10**9))
def test_nearest_is_within_a_half_and_halves_go_up(value: Fraction) -> None:
    assert Fraction(-1, 2) < nearest(value) - value <= Fraction(1, 2)


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("full", Region(0, 0, 1000, 700)),
        ("square", Region(150, 0, 700, 700)),
        ("10,20,30,40", Region(10, 20, 30, 40)),
        ("990,690,30,40", Region(990, 690, 10, 10)),
        ("pct:10,10,10,10", Region(100, 70, 100, 70)),
        ("pct:0,0,200,200", Region(0, 0, 1000, 700)),
        ("pct:0.05,0,0.1,100", Region(1, 0, 1, 700)),
    ],
)
def test_regions(text: str, region: Region) -> None:
    assert parse_region(text, PICTURE) == region


def test_neighbouring_percent_regions_share_their_edge() -> None:
    edges = [parse_region(f"pct:{9.7 * i:.1f},0,9.7,100", PICTURE) for i in range(10)]
    for left, right in pairwise(edges):
        assert left.x + left.width == right.x


@pytest.mark.parametrize(
    "text",
    ["1000,0,10,10", "0,700,10,10", "0,0,0,10", "0,0,10,0", "pct:0,0,0,10", "pct:100,0,1,1"]
    + ["-1,0,10,10", "0,0,10", "0,0,10,10,10", "1.5,0,10,10", "pct:1,2,3", "px:0,0,1,1"]
    + [f"0,0,10,{part}" for part in NONSENSE],
)
def test_regions_that_are_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_region(text, PICTURE)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("max", (1000, 700)),
        ("^max", (1000, 700)),
        ("500,", (500, 350)),
        (",350", (500, 350)),
        ("501,", (501, 351)),
        ("10,600", (10, 600)),
        ("pct:50", (500, 350)),
        ("!400,400", (400, 280)),
        ("!2000,350", (500, 350)),
        ("^!2000,2000", (2000, 1400)),
        ("^pct:150", (1500, 1050)),
        ("^2000,", (2000, 1400)),
        ("^,1400", (2000, 1400)),
        ("^1200,10", (1200, 10)),
        ("^!9000,9000", (2390, 1673)),
    ],
)
def test_sizes(text: str, size: tuple[int, int]) -> None:
    region = Region(0, 0, 1000, 700)
    assert parse_size(text, region, PICTURE, LIMITS) == size


@pytest.mark.parametrize(
    "text",
    [
        "full",
        "1001,",
        ",701",
        "1001,700",
        "pct:101",
        "!1001,701",
        "^5000,1",
        "^1,5000",
        "^3000,3000",
    ]
    + ["0,", ",0", "0,0", "!0,10", "!10,", "!,10", "pct:0", "pct:0.01", ",", "^", "^^max", "!max"]
    + [f"{part}," for part in NONSENSE]
    + [f"pct:{part}" for part in NONSENSE],
)
def test_sizes_that_are_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_size(text, Region(0, 0, 1000, 700), PICTURE, LIMITS)


def test_a_size_over_a_limit_names_the_limit() -> None:
    with pytest.raises(BadRequest) as caught:
        parse_size("^5000,1", Region(0, 0, 1000, 700), PICTURE, LIMITS)
    assert (caught.value.limit, caught.value.value) == ("max_tile_side", 4096)


def test_max_shrinks_to_the_limits_and_enlarges_to_them_only_with_a_caret() -> None:
    full, corner = Region(0, 0, 1000, 700), Region(0, 0, 10, 7)
    assert parse_size("max", full, PICTURE, SMALL_LIMITS) == (292, 204)
    assert parse_size("max", corner, PICTURE, SMALL_LIMITS) == (10, 7)
    assert parse_size("^max", corner, PICTURE, SMALL_LIMITS) == (292, 204)


def test_a_strip_stays_a_pixel_high() -> None:
    strip = Picture(30_000, 1, "gray")
    assert parse_size("!400,400", Region(0, 0, 30_000, 1), strip, LIMITS) == (400, 1)


@pytest.mark.parametrize(
    ("text", "mirrored", "degrees"),
    [
        ("0", False, "0"),
        ("!0", True, "0"),
        ("360", False, "0"),
        ("090", False, "90"),
        ("22.50", False, "22.5"),
        ("!270.0", True, "270"),
    ],
)
def test_rotations(text: str, mirrored: bool, degrees: str) -> None:
    found = parse_rotation(text)
    assert (found[0], f"{found[1]:f}") == (mirrored, degrees)


@pytest.mark.parametrize("text", ["361", "360.1", "!!0", "-90", "90deg", *NONSENSE])
def test_rotations_that_are_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_rotation(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("full/max/0/default.jpg", "full/max/0/default.jpg"),
        ("0,0,1000,700/1000,700/360/color.png", "full/max/0/default.png"),
        ("pct:0,0,50,50/250,/!90/gray.webp", "0,0,500,350/250,175/!90/gray.webp"),
        ("square/^1400,/0.50/bitonal.tif", "150,0,700,700/^1400,1400/0.5/bitonal.tif"),
    ],
)
def test_canonical_forms(text: str, canonical: str) -> None:
    assert parse(*text.split("/"), PICTURE, LIMITS).canonical == canonical


@pytest.mark.parametrize("file", ["default", "default.", ".jpg", "default.jpeg", "native.jpg", "default.gif"])
def test_files_that_are_refused(file: str) -> None:
    with pytest.raises(BadRequest):
        parse("full", "max", "0", file, PICTURE, LIMITS)
