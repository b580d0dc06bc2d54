"""A picture much larger than its network: one map of it, from overlapping tiles at full resolution.

A page of 144 photos, five of which show the cat. Shrunk to the size that the built-in network takes, each photo is a
few pixels; by tiles the network sees all of it. Printed is the share of the evidence for the cat that lies in its
photos.

    python examples/tiles.py out/tiles.png
"""

import random
import sys
from importlib.resources import files
from pathlib import Path

import torch
from PIL import Image, ImageOps

import camlucida as cl
from camlucida import view
from camlucida.combine import tiled

SIDE, ROWS, CATS = 128, 12, 5  # of a photo on the page; photos a row and column; cats among them
OTHERS = ("coffee", "motorcycle_left", "astronaut", "rocket")


def page() -> tuple[Image.Image, torch.Tensor]:
    """The page, from photos that are part of scikit-image, and where on it the cat is."""
    try:
        folder = files("skimage.data")
    except ImportError as missing:
        sys.exit(f"This example takes its photos from scikit-image ({missing}): pip install 'camlucida[demo]'")
    chance, whole = random.Random(0), Image.new("RGB", (SIDE * ROWS, SIDE * ROWS))
    names = ["chelsea"] * CATS + [OTHERS[k % len(OTHERS)] for k in range(ROWS**2 - CATS)]
    chance.shuffle(names)
    cat = torch.zeros(whole.height, whole.width, dtype=torch.bool)
    for k, name in enumerate(names):
        top, left = SIDE * (k // ROWS), SIDE * (k % ROWS)
        file = next(Path(str(folder)).glob(f"{name}.*"))
        whole.paste(ImageOps.fit(Image.open(file).convert("RGB"), (SIDE, SIDE)), (left, top))
        cat[top : top + SIDE, left : left + SIDE] = name == "chelsea"
    return whole, cat


def share(heat: torch.Tensor, where: torch.Tensor) -> float:
    """How much of the heat lies there."""
    return float((heat * where).sum() / heat.sum().clamp(min=1e-9))


def main(path: str = "out/tiles.png", name: str = "cat") -> None:
    model = cl.load("builtin")
    picture, cat = page()
    shrunk = cl.explain(model, picture, target=name)
    e = tiled(model, picture, target=name)
    print(f"the cat's photos are {float(cat.float().mean()):.0%} of the page, and hold of the evidence")
    print(f"  shrunk to {'×'.join(map(str, model.preprocess.size))}: {share(shrunk.heatmap(), cat):.0%}")
    print(f"  {e.facts.title}: {share(e.heatmap(), cat):.0%}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    view.montage([[shrunk.overlay(), e.overlay()]], column_labels=["shrunk", "by tiles"], side=560).save(path)
    print(f"the picture: {path}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except cl.CamlucidaError as problem:  # such as a checkout without the network's weights
        sys.exit(str(problem))
