"""Uses a service as people do: uploads a picture, waits for the fit, looks at it, keeps the file.

    python docker/try_service.py http://127.0.0.1:8000

Needs an installed Acorn. Ends with an error when anything is not as it should be.
"""

from __future__ import annotations

import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np

import acorn_svc
from acorn_svc.client import Client
from acorn_svc.field.kinds import as_image
from acorn_svc.formats.images import encode_image

SIDE = 256
LEAST_PSNR = 30.0


def picture() -> np.ndarray:
    """Smooth colours with a sharp disc in them, uint8 [SIDE, SIDE, 3]."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    disc = (x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.05
    return (np.stack([x, y, np.where(disc, 1.0, 0.2)], axis=-1) * 255).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of two pictures of 8 bits, in dB."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def get(url: str) -> bytes:
    """The body of an answer that must be 200."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return bytes(answer.read())


def main(url: str) -> None:
    """Try the service at `url`."""
    original = picture()
    acorn = Client(url)
    assert b"<!doctype html" in get(f"{url}/").lower(), "no page"
    scene = acorn.wait(acorn.upload(encode_image(original, "png"), preset="draft", seconds=3).id)
    quality = psnr(acorn.render(scene.id), original)
    assert quality >= LEAST_PSNR, f"only {quality:.1f} dB"
    tile = get(f"{url}/iiif/{scene.id}/0,0,128,128/128,/0/default.jpg")
    assert tile.startswith(b"\xff\xd8\xff"), "the tile is no JPEG"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kept.acorn"
        acorn.download(scene.id, path)
        assert psnr(as_image(acorn_svc.load(path)).render(), original) >= LEAST_PSNR, (
            "the file is another picture"
        )
    acorn.delete(scene.id)
    print(f"{url}: uploaded, fitted to {quality:.1f} dB, viewed, downloaded, deleted")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
