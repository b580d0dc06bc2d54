"""Several labels of one picture: a net that says red, green and blue, each by a sigmoid of its own.

Its weights are set by hand, so that what it sees is known: a red and a blue square in this picture, and nothing green.
Each label that holds is explained by itself, and its evidence has to lie on its own square.

    python examples/multilabel.py labels.png
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import camlucida as cl
from camlucida import view

LABELS = ["red", "green", "blue"]
CELL = 8
SQUARES = {"red": (1, 2), "blue": (4, 5)}  # the row and column of cells that each fills


def picture(height: int = 48, width: int = 64) -> Tensor:
    """A grey picture with the squares, ``1 3 height width``."""
    x = torch.full((1, 3, height, width), 0.3)
    for name, (row, column) in SQUARES.items():
        part = x[0, :, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        part.zero_()[LABELS.index(name)] = 1.0
    return x


def network() -> nn.Module:
    """How much of each colour a cell has beyond the other two; a label's logit is its mean, scaled."""
    conv, head = nn.Conv2d(3, 3, CELL, CELL), nn.Linear(3, 3)
    with torch.no_grad():
        colours = torch.eye(3) * 1.5 - 0.5
        conv.weight.copy_(colours[:, :, None, None].expand(3, 3, CELL, CELL) / CELL**2)
        conv.bias.zero_()
        head.weight.copy_(torch.eye(3) * 200)
        head.bias.fill_(-2.0)
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()


def main(path: str = "labels.png") -> dict[str, bool]:
    """Explain every label that holds, draw it, and say for each whether its map peaks on its square."""
    net, x = network(), picture()
    told = cl.sweep(net, x, targets=[cl.labels(k) for k in range(len(LABELS))])
    found, panels = {}, []
    for name, e in zip(LABELS, told, strict=True):
        sure = e.probability() or 0.0
        print(f"{name} {sure:.0%}")
        if sure < 0.5:
            continue
        row, column = divmod(int(e.heatmap().argmax()), x.shape[3])
        found[name] = (row // CELL, column // CELL) == SQUARES[name]
        panels.append([e.panel(caption=f"{name} {sure:.0%} · {e.facts.title}")])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    view.tiled(panels).save(path)
    print(f"the picture: {path}")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:2])
