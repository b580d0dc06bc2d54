"""What does the built-in network see in three photos, and what does it say of one that shows nothing it knows?

The network ends in global average pooling, so it carries its own explanation: one confidence map a class, whose mean
is the class's score. For each photo: the evidence for its best class by Grad-CAM, then the confidence maps of its best
classes on one scale. The cup of coffee is none of its classes: the caption has to say so.

    python examples/builtin.py out/demo.png
"""

import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from PIL import Image

import camlucida as cl
from camlucida import view

PHOTOS = {  # what a photo shows, and its file in scikit-image
    "Chelsea the cat": "chelsea.png",
    "a motorbike in a garage": "motorcycle_left.png",
    "a cup of coffee, none of the classes": "coffee.png",
}
TOP = 4  # classes shown


def photos() -> list[Image.Image]:
    """Photos that are part of scikit-image."""
    try:
        folder = files("skimage.data")
    except ImportError as missing:
        sys.exit(f"This example takes its photos from scikit-image ({missing}): pip install 'camlucida[demo]'")
    return [Image.open(str(folder / name)).convert("RGB") for name in PHOTOS.values()]


def block(model: torch.nn.Module, photo: Image.Image) -> tuple[str, Image.Image]:
    """One photo: the evidence for its best class, and beside it the maps of the best classes on one scale."""
    why = cl.explain(model, photo)
    maps = cl.sweep(model, photo, targets=[cl.rank(k) for k in range(1, TOP + 1)], methods=["cam"])
    scale = cl.shared_scale(maps, signed=True)
    unseen = ~maps[0].seen()
    heats = [e.heatmap(signed=True, scale=scale).masked_fill(unseen, torch.nan).numpy() for e in maps]
    labels = [f"{e.label()} {e.probability() or 0:.0%}" for e in maps]
    doubt = "low confidence · " if why.confident() is False else ""
    caption = f"{doubt}class confidence maps, in logits, on one scale"
    sheet = view.class_map_sheet(photo, heats, labels, signed=True, top=f"{scale:.2g}", caption=caption)
    return why.caption(), beside(why.panel(side=256), sheet)


def beside(*pages: Image.Image) -> Image.Image:
    """Pages from left to right on white."""
    whole = Image.new("RGB", (sum(p.width for p in pages), max(p.height for p in pages)), view.PAPER)
    for i, page in enumerate(pages):
        whole.paste(page, (sum(p.width for p in pages[:i]), (whole.height - page.height) // 2))
    return whole


def below(pages: Sequence[Image.Image]) -> Image.Image:
    """Pages from top to bottom: as `beside`, on its side."""
    turned = beside(*(p.transpose(Image.Transpose.TRANSPOSE) for p in pages))
    return turned.transpose(Image.Transpose.TRANSPOSE)


def main(path: str = "out/demo.png", model: torch.nn.Module | None = None) -> None:
    model = cl.load("builtin") if model is None else model
    blocks = []
    for shown, photo in zip(PHOTOS, photos(), strict=True):
        caption, page = block(model, photo)
        print(f"{shown}: {caption}")
        blocks.append(page)
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    below(blocks).save(file)
    print(f"the picture: {file}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except cl.CamlucidaError as problem:  # such as a checkout without the network's weights
        sys.exit(str(problem))
