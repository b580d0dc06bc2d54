"""What are a network's features made of: which parts do several photos share, and what does each part speak for?

Deep Feature Factorisation of the last features of a network over three photos at once: every place becomes a sum of a
few concepts, each with its own colour, and with the classes that the head names when it sees that concept alone.

    python examples/concepts.py out/concepts.png [--model builtin] [--count 6] [PHOTO ...]
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import camlucida as cl
from camlucida import view
from camlucida.concepts import Concepts, factorise

PHOTOS = ("chelsea.png", "motorcycle_left.png", "coffee.png")


def photos() -> list[Path]:
    """Photos that are part of scikit-image."""
    try:
        folder = files("skimage.data")
    except ImportError as missing:
        sys.exit(f"This example takes its photos from scikit-image ({missing}): pip install 'camlucida[demo]'")
    return [Path(str(folder / name)) for name in PHOTOS]


def tell(found: Concepts) -> None:
    """One line a concept: what it speaks for, and how much of each photo's features it is."""
    print(f"{found}")
    shares = found.maps.flatten(2).square().sum(2)
    for k in range(len(found)):
        words = ", ".join(f"{name} {score:+.2f}" for name, score in found.says(k))
        most = found.pictures.names[int(shares[:, k].argmax())]
        print(f"  {k + 1}  most in {most}: {words}")


def main(path: str = "out/concepts.png", sources: Sequence[Any] = (), model: Any = None, count: int = 6) -> None:
    """Factorise, tell, and write the picture."""
    model = cl.load("builtin") if model is None else model
    found = factorise(model, list(sources) or photos(), count=count)
    tell(found)
    pages = [found.picture(i, side=360) for i in range(len(found.maps))]
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    view.montage([pages], side=max(max(p.size) for p in pages)).save(file)
    print(f"the picture: {file}")


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("path", nargs="?", default="out/concepts.png")
    asked.add_argument("photos", nargs="*")
    asked.add_argument("--model", default="builtin")
    asked.add_argument("--count", type=int, default=6)
    given = asked.parse_args()
    try:
        main(given.path, given.photos, cl.load(given.model), given.count)
    except cl.CamlucidaError as problem:  # such as a checkout without the network's weights
        sys.exit(str(problem))
