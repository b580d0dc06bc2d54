"""A tiny data set: red discs, green boxes and blue tents on dark noise, one a picture."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

KINDS = ("box", "disc", "tent")


def draw(kind: str, seed: int, side: int = 40) -> Image.Image:
    chance = np.random.default_rng(seed)
    picture = Image.fromarray(chance.integers(0, 90, (side, side, 3), dtype=np.uint8))
    x, y = chance.integers(2, side - 24, 2).tolist()
    box, pen = (x, y, x + 20, y + 20), ImageDraw.Draw(picture)
    if kind == "disc":
        pen.ellipse(box, fill=(230, 60, 60))
    elif kind == "box":
        pen.rectangle(box, fill=(60, 220, 60))
    else:
        pen.polygon([(x, y + 20), (x + 20, y + 20), (x + 10, y)], fill=(70, 70, 240))
    return picture


def folder(root: Path, count: int = 12, kinds: tuple[str, ...] = KINDS, seed: int = 0) -> Path:
    """A folder of class folders with ``count`` pictures each."""
    for k, kind in enumerate(kinds):
        (root / kind).mkdir(parents=True)
        for i in range(count):
            draw(kind, seed + 1000 * k + i).save(root / kind / f"{i:02}.png")
    return root
