"""Every method on the same pictures, for the eye: docs/pictures/methods.jpg.

    PYTHONPATH=src python benchmarks/montage.py --weights FOLDER --out docs/pictures/methods.jpg

FOLDER holds a ``models.py`` with ``load(name)`` and the weights of a SqueezeNet 1.1 trained on ImageNet. The photos are
scikit-image's own, all free of copyright. Captum's methods are left out where Captum is not installed; attention's and
CAM always: the net has no attention, and a convolution and a ReLU between its features and its average. What is
printed is a check for the eye, not a benchmark of methods: how much denser the heat is inside a box around the object
than it would be if spread evenly, and whether its hottest place is inside.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageOps

import camlucida as cl
from camlucida import view
from camlucida.frame import IMAGENET, Preprocess
from camlucida.models import Model
from camlucida.registry import Method

SIDE, FULL, COLUMNS = 128, 448, 8
LAYER = "features.12"  # 13 × 13 places of 512 channels, and a nonlinear end: here the methods differ
WHOLE = Preprocess((224, 224), IMAGENET.mean, IMAGENET.std, crop=1.0)


@dataclass(frozen=True)
class Scene:
    """Photos of scikit-image one above the other, and the class asked for; its box is in shares of the square."""

    name: str
    files: tuple[str, ...]
    wanted: int
    box: tuple[float, float, float, float]  # left, top, right, bottom

    def square(self) -> Image.Image:
        """What the net sees, all of it: an even strip of each photo, cut from its middle."""
        whole, high = Image.new("RGB", (FULL, FULL)), FULL // len(self.files)
        for i, file in enumerate(self.files):
            with Image.open(str(files("skimage.data") / file)) as photo:
                whole.paste(ImageOps.fit(photo.convert("RGB"), (FULL, high), Image.Resampling.LANCZOS), (0, i * high))
        return whole


BOTH = ("chelsea.png", "coffee.png")  # two answers in one picture: what is blind to the class shows it
SCENES = [
    Scene("Egyptian cat", BOTH, 285, (0.0, 0.0, 1.0, 0.5)),
    Scene("cup", BOTH, 968, (0.0, 0.5, 1.0, 1.0)),
    Scene("missile", ("rocket.jpg",), 657, (0.42, 0.28, 0.62, 1.0)),
]


def net(folder: Path) -> Model:
    """The trained net of the folder, with what it needs to know about pictures."""
    sys.path.insert(0, str(folder))
    from models import load

    return Model(load("squeezenet1_1"), WHOLE, name="SqueezeNet 1.1")


def shown() -> list[Method]:
    """The methods that can be shown here; the others are named."""
    known = list(cl.list_methods().values())
    left = [m for m in known if m.needs in ("attention", "head")]
    if find_spec("captum") is None:
        left += [m for m in known if m.name.startswith("captum")]
    print("left out:", ", ".join(m.name for m in left))
    return sorted((m for m in known if m not in left), key=lambda m: (m.at == "input", m.name.startswith("captum")))


def focus(e: cl.Explanation, scene: Scene) -> tuple[float, bool]:
    """How many times denser the heat is in the scene's box than over all of it; whether its top is in there."""
    heat = e.heatmap().float()
    left, top, right, bottom = (round(share * FULL) for share in scene.box)
    inside = float(heat[top:bottom, left:right].sum() / heat.sum().clamp(min=1e-12))
    y, x = divmod(int(heat.argmax()), heat.shape[1])
    return inside / ((right - left) * (bottom - top) / FULL**2), left <= x < right and top <= y < bottom


def loud(e: cl.Explanation) -> float:
    """The 99th percentile of a map's positive values: a few pixels would leave all others dark."""
    positive = e.map[e.map > 0]
    return float(positive.quantile(0.99)) if positive.numel() else 0.0


def column(model: Model, method: Method, kept: Path | None) -> list[Image.Image]:
    """One method on each scene, made or kept from an earlier run; a line is printed for what is made."""
    held = [kept / f"{method.name}-{i}.png" for i in range(len(SCENES))] if kept else []
    if held and all(file.exists() for file in held):
        return [Image.open(file) for file in held]
    cells, words, start = [], [], time.perf_counter()
    for scene in SCENES:
        method = method.having(samples=300) if method.name == "rise" else method
        layer = LAYER if method.at == "layer" else None
        e = cl.explain(model, scene.square(), target=scene.wanted, method=method, layer=layer)
        dense, hit = focus(e, scene)
        words.append(f"{dense:5.2f} {'hit ' if hit else 'miss'} {e.status}")
        cells.append(e.overlay(scale=loud(e) if method.at == "input" or e.map.shape[-1] == 224 else None))
    for file, cell in zip(held, cells, strict=False):
        cell.save(file)
    print(f"{method.name:20s} {e.layer:14s} {' | '.join(words)}  {time.perf_counter() - start:.1f} s", flush=True)
    return cells


def page(columns: dict[str, list[Image.Image]]) -> Image.Image:
    """Bands of some columns each, one below the other; every band has a row for each photo."""
    names = list(columns)
    bands = []
    for at in range(0, len(names), COLUMNS):
        some = names[at : at + COLUMNS]
        grid = [[columns[name][row] for name in some] for row in range(len(SCENES))]
        bands.append(view.montage(grid, row_labels=[p.name for p in SCENES], column_labels=some, side=SIDE))
    whole = Image.new("RGB", (max(b.width for b in bands), sum(b.height for b in bands)), view.PAPER)
    for i, band in enumerate(bands):
        whole.paste(band, (0, sum(b.height for b in bands[:i])))
    return whole


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--weights", type=Path, required=True)
    ask.add_argument("--out", type=Path, required=True)
    ask.add_argument("--methods", nargs="*", help="only these")
    ask.add_argument("--keep", type=Path, help="a folder for finished cells: what is there is not made again")
    asked = ask.parse_args()
    if asked.keep:
        asked.keep.mkdir(parents=True, exist_ok=True)
    model = net(asked.weights)
    methods = [m for m in shown() if not asked.methods or m.name in asked.methods]
    columns = {"photo": [p.square() for p in SCENES], **{m.name: column(model, m, asked.keep) for m in methods}}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    page(columns).save(asked.out, quality=62, optimize=True, progressive=True)
    print(f"{asked.out}: {asked.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
