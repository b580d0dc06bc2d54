"""Detection: one map for each thing that is found, not one for all.

The detector's weights are set by hand, so that what it sees is known: red and blue squares, each in a box around it.
Its answers have the form of torchvision's, so that any of its detectors can stand here: a list of dicts of boxes,
labels and scores. Two pictures of each detection: the evidence by HiResCAM, from the gradient of its score, and what
happens to that very detection when parts of the picture are covered (occlusion), with no gradient at all.

    python examples/detection.py detection.png
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import camlucida as cl
from camlucida import view

CELL, LABELS = 8, ["red square", "blue square"]
SQUARES = [(0, (1, 2)), (2, (4, 5)), (0, (4, 1))]  # the colour, and the row and column of cells that it fills


def picture(height: int = 48, width: int = 64) -> Tensor:
    """A grey picture with the squares, ``1 3 height width``."""
    x = torch.full((1, 3, height, width), 0.2)
    for number, (colour, (row, column)) in enumerate(SQUARES):
        part = x[0, :, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        part.zero_()[colour] = 1.0 - 0.1 * number
    return x


class Detector(nn.Module):
    """The mean colour of each cell, less a little of what is around it; a box of two cells about each one found."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 2, CELL, CELL), nn.ReLU())
        self.head = nn.Conv2d(2, 2, 3, padding=1)
        red = torch.tensor([1.0, -0.25, -1.0])
        with torch.no_grad():
            colours = torch.stack([red, red.flip(0)])[:, :, None, None]
            self.features[0].weight.copy_(colours.expand(2, 3, CELL, CELL) / CELL**2)
            self.features[0].bias.zero_()
            self.head.weight.copy_(torch.eye(2)[:, :, None, None].expand(2, 2, 3, 3) * -0.3)
            self.head.weight[[0, 1], [0, 1], 1, 1] = 9.0
            self.head.bias.fill_(-4.0)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        scores = self.head(self.features(torch.stack(list(images)))).sigmoid()
        return [self.found(s) for s in scores]

    def found(self, scores: Tensor) -> dict[str, Tensor]:
        """Of one picture, best first."""
        kind, row, column = (scores > 0.5).nonzero(as_tuple=True)
        sure = scores[kind, row, column]
        order = sure.argsort(descending=True)
        centre = (torch.stack([column, row], 1) + 0.5) * CELL
        boxes = torch.cat([centre - CELL, centre + CELL], 1)
        return {"boxes": boxes[order], "labels": kind[order], "scores": sure[order]}


def main(path: str = "detection.png") -> list[tuple[bool, bool]]:
    """Explain every detection, and say for each of both methods whether its map peaks on the thing itself."""
    net, x = Detector().eval(), picture()
    boxes = net(list(x))[0]["boxes"].round().int().tolist()
    rows, peaks = [], []
    for number, box in enumerate(boxes):
        found = cl.sweep(net, ([x[0]],), targets=[cl.detection(number)], methods=["hirescam", "occlusion"])
        cell = ((box[1] + box[3]) // 2 // CELL, (box[0] + box[2]) // 2 // CELL)
        hits = [tuple(v // CELL for v in divmod(int(e.heatmap().argmax()), x.shape[3])) == cell for e in found]
        peaks.append((hits[0], hits[1]))
        k = int(found[0].classes[0]) if found[0].classes is not None else 0
        captions = [f"{LABELS[k]} {e.where[0]} {e.probability() or 0:.0%} · {e.facts.title}" for e in found]
        print(captions[0], "· both peak on it" if all(hits) else "· elsewhere")
        rows.append([e.panel(caption=c) for e, c in zip(found, captions, strict=True)])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    view.tiled(rows).save(path)
    print(f"the picture: {path}")
    return peaks


if __name__ == "__main__":
    main(*sys.argv[1:2])
