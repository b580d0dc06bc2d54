"""Where do two pictures agree, and where is what several have in common: similarity of embeddings, for any backbone.

    python examples/similarity.py [out/similarity.png] [--steps 400] [--seed 0]

The picture tower of the neighbouring example, ``prompts.py``, which knows no classes, only embeddings. First two
pictures that share one shape: the map shows it. Then a concept, the mean of many pictures with a yellow disc less the
mean of many without: the map shows the disc in a new picture.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from prompts import TEXTS, pictures, trained

import camlucida as cl
from camlucida import view


def pairs(true: Tensor, count: int) -> list[tuple[int, int, int]]:
    """Pairs of pictures that share one shape of one colour, with its text; no picture is in two of them."""
    found = []
    for i in range(len(true)):
        for j in range(len(true)):
            both = (true[i] * true[j]).nonzero()[:, 0].tolist()
            if i != j and len(both) == 1 and len(found) < count and not any({i, j} & set(pair[:2]) for pair in found):
                found.append((i, j, both[0]))
    return found


def share(e: cl.Explanation, i: int, where: Tensor) -> float:
    """How much of the evidence lies at a shape, a few pixels around it included."""
    heat = e.heatmap(i)
    near = nn.functional.max_pool2d(where[None], 7, 1, 3)[0]
    return float((heat * near).sum() / heat.sum().clamp(min=1e-9))


def main(path: str = "out/similarity.png", steps: int = 400, seed: int = 0) -> dict[str, float]:
    """Train the towers, ask where pairs of pictures agree and where a concept is, and draw."""
    towers = trained(steps, seed)
    net = nn.Sequential(towers.places, nn.AdaptiveAvgPool2d(1), nn.Flatten(), towers.picture).eval()
    x, true, where = pictures(80, torch.Generator().manual_seed(99))
    agreeing = pairs(true, 24)
    first, second = (torch.tensor([pair[side] for pair in agreeing]) for side in (0, 1))
    agree = cl.explain(net, x[first], target=cl.similar(cl.embed(net, x[second])))
    back = cl.explain(net, x[second], target=cl.similar(cl.embed(net, x[first])))

    disc = TEXTS.index("a yellow disc")
    with_it, without = (cl.concept(cl.embed(net, x[40:][true[40:, disc] == k])) for k in (1, 0))
    new = (true[:40, disc] == 1).nonzero()[:, 0]
    shown = cl.explain(net, x[new], target=cl.similar(with_it, than=without))

    shares = [share(agree, n, where[i, k]) for n, (i, _, k) in enumerate(agreeing)]
    found = {
        "evidence at the shape that two pictures share": sum(shares) / len(shares),
        "evidence at the disc that the concept means": sum(
            share(shown, n, where[i, disc]) for n, i in enumerate(new.tolist())
        )
        / len(new),
    }
    for name, value in found.items():
        print(f"{name:48} {value:6.1%}")
    drawn(path, agree, back, shown)
    return found


def drawn(path: str, agree: cl.Explanation, back: cl.Explanation, shown: cl.Explanation) -> None:
    """Three pairs, with what they share, seen from both; three pictures, with the concept."""
    both = [[cell for e in (agree, back) for cell in (e.pictures.image(i), e.overlay(i))] for i in range(3)]
    new = [[shown.pictures.image(i), shown.overlay(i)] for i in range(3)]
    pages = [
        view.montage(both, column_labels=["a picture", "like the other", "the other", "like it"], side=160),
        view.montage(new, column_labels=["a new picture", "yellow disc"], side=160),
    ]
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    view.montage([pages], side=max(pages[0].size)).save(file)
    print(f"the picture: {file}")


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("path", nargs="?", default="out/similarity.png")
    words.add_argument("--steps", type=int, default=400)
    words.add_argument("--seed", type=int, default=0)
    asked = words.parse_args()
    main(asked.path, asked.steps, asked.seed)
