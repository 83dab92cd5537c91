"""Makes the picture of the README: a photo, its field with the tree of blocks, and a part seen closer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.data import astronaut

import acorn_svc
from acorn_svc.formats.images import encode_image

CLOSER = (176, 64, 128, 128)
GAP = 12
LINE = np.array([255, 214, 92], np.float32)


def main() -> None:
    """Writes `picture.jpg` beside this file."""
    photo = astronaut()
    field = acorn_svc.fit(photo, steps=4000, blocks=160)
    panels = [photo, with_blocks(field.render(), field.blocks()), field.render(CLOSER, (512, 512))]
    gap = np.full((512, GAP, 3), 255, np.uint8)
    picture = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
    Path(__file__).with_name("picture.jpg").write_bytes(encode_image(picture, "jpg", quality=88))


def with_blocks(picture: NDArray[np.uint8], blocks: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draws the edges of the blocks over a picture."""
    edges = np.zeros(picture.shape[:2], bool)
    for x, y, side, _ in blocks:
        edges[y : y + side, x] = edges[y, x : x + side] = True
    drawn = picture.astype(np.float32)
    drawn[edges] = 0.35 * drawn[edges] + 0.65 * LINE
    return drawn.astype(np.uint8)


if __name__ == "__main__":
    main()
