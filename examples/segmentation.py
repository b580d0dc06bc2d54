"""Segmentation: why a net paints a square in one class and not in the other.

Its weights are set by hand, so that what it sees is known: a green square is of class 1 where something red is near,
of class 2 where something blue is. It paints the square; the reason for the class is the mark beside it. The map of a
class over the region, taken at the end of the encoder as `explain` does by itself, shows both; taken at the net's last
layer it shows the region again, and no reason.

    python examples/segmentation.py segmentation.png
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl
from camlucida import view

CELL, CLASSES = 4, ["nothing", "square near red", "square near blue"]
SQUARE, MARK = (slice(4, 8), slice(5, 9)), (slice(5, 7), slice(10, 12))  # in cells


def picture(colour: int, height: int = 48, width: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """A dark picture ``1 3 height width``, with a green square, a mark of this colour beside it, and where both are."""
    x, inside = torch.zeros(1, 3, height, width), torch.zeros(2, height, width, dtype=torch.bool)
    for i, (channel, (rows, columns)) in enumerate(((1, SQUARE), (colour, MARK))):
        at = slice(rows.start * CELL, rows.stop * CELL), slice(columns.start * CELL, columns.stop * CELL)
        x[0, channel, at[0], at[1]], inside[i, at[0], at[1]] = 1.0, True
    return x, inside[0], inside[1]


class Segmenter(nn.Module):
    """Colours by cells, then what is around each cell, then the classes at the picture's size."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, CELL, CELL), nn.ReLU())
        self.around = nn.Conv2d(4, 2, 11, padding=5)
        self.classes = nn.Conv2d(2, 3, 1)
        with torch.no_grad():
            colours = torch.cat([torch.eye(3), torch.ones(1, 3)])  # red, green, blue, and how bright it is
            self.encoder[0].weight.copy_(colours[:, :, None, None].expand(4, 3, CELL, CELL) / CELL**2)
            self.around.weight.zero_()
            self.around.weight[:, 1, 5, 5] = 4.0  # the cell itself is green
            self.around.weight[0, 0], self.around.weight[1, 2] = 0.5, 0.5  # and red, or blue, is near
            self.classes.weight.copy_(torch.tensor([[-0.5, -0.5], [1.0, -0.5], [-0.5, 1.0]])[:, :, None, None])
            self.classes.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
            self.encoder[0].bias.zero_()
            self.around.bias.fill_(-3.0)  # a mark alone is no square

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.classes(self.around(self.encoder(x)).relu())
        return {"out": F.interpolate(y, size=x.shape[2:], mode="nearest")}


def main(path: str = "segmentation.png") -> list[tuple[float, float]]:
    """Explain both classes; for each the share of the evidence on its mark, at the chosen layer and at the last."""
    net, rows, shares = Segmenter().eval(), [], []
    for k, colour in ((1, 0), (2, 2)):
        x, square, mark = picture(colour)
        right = float((net(x)["out"].argmax(1)[0] == k)[square].float().mean())
        why, echo = (cl.explain(net, x, target=cl.region(k), layer=layer) for layer in (None, "classes"))
        shares.append((on(why, mark), on(echo, mark)))
        print(
            f"{CLASSES[k]} ({right:.0%} of the square painted so): of the evidence at {why.layer!r} "
            f"{shares[-1][0]:.0%} lies on the mark, of that at {echo.layer!r} {shares[-1][1]:.0%}"
        )
        rows.append([e.panel(caption=f"{CLASSES[k]} · {e.facts.title} · {e.layer}") for e in (why, echo)])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    view.tiled(rows).save(path)
    print(f"the picture: {path}")
    return shares


def on(e: cl.Explanation, part: Tensor) -> float:
    """The share of the evidence that lies on a part of the picture."""
    heat = e.heatmap()
    return float((heat * part).sum() / heat.sum().clamp(min=1e-9))


if __name__ == "__main__":
    main(*sys.argv[1:2])
