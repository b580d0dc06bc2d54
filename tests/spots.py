"""A detector whose answers are certain, for its weights are set by hand: red and blue squares, in every form."""

from typing import Any

import torch
from torch import Tensor, nn

CELL = 8  # pixels of a cell of its grid; its boxes are two cells wide, around a cell's middle


class Spots(nn.Module):
    """Class 0 is red, class 1 is blue: the mean colour of a cell, less a little of what is around it."""

    def __init__(self, form: str = "lists", scale: float = 9.0) -> None:
        super().__init__()
        self.form = form
        self.features = nn.Sequential(nn.Conv2d(3, 2, CELL, CELL), nn.ReLU())
        self.head = nn.Conv2d(2, 2, 3, padding=1)
        with torch.no_grad():
            red = torch.tensor([1.0, -0.25, -1.0])
            weight = torch.stack([red, red.flip(0)])[:, :, None, None].expand(2, 3, CELL, CELL)
            self.features[0].weight.copy_(weight / CELL**2)
            self.features[0].bias.zero_()
            self.head.weight.zero_()
            for k in range(2):
                self.head.weight[k, k] = -scale / 30
                self.head.weight[k, k, 1, 1] = scale
            self.head.bias.fill_(-scale / 2.2)
        self.eval()

    def forward(self, x: Tensor | list[Tensor]) -> Any:
        x = torch.stack(list(x))
        y = self.head(self.features(x))  # b 2 h w
        h, w = y.shape[2:]
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        centre = ((torch.stack([columns, rows], -1) + 0.5) * CELL).reshape(-1, 2).to(y)
        boxes = torch.cat([centre, torch.full_like(centre, 2.0 * CELL)], 1).expand(len(y), -1, 4)
        return FORMS[self.form](y.flatten(2).transpose(1, 2), boxes, (h * CELL, w * CELL))


def _corners(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)


def _lists(y: Tensor, boxes: Tensor, _: Any) -> list[dict[str, Tensor]]:
    """As torchvision does it: what is sure enough, best first, one of each place."""
    found = []
    for z, b in zip(y, boxes, strict=True):
        best = z.sigmoid().max(1)
        order = [int(i) for i in best.values.argsort(descending=True) if best.values[i] > 0.05]
        kept: list[int] = []
        for i in order:
            if all(float((b[i, :2] - b[j, :2]).abs().sum()) > CELL for j in kept if best.indices[i] == best.indices[j]):
                kept.append(i)
        found.append({"boxes": _corners(b)[kept], "labels": best.indices[kept], "scores": best.values[kept]})
    return found


def _detr(y: Tensor, boxes: Tensor, size: tuple[int, int], nothing: bool) -> dict[str, Tensor]:
    share = boxes / boxes.new_tensor([size[1], size[0]] * 2)
    return {"logits": torch.cat([y, torch.zeros_like(y[..., :1])], 2) if nothing else y, "pred_boxes": share}


def _final(y: Tensor, boxes: Tensor, size: Any) -> Tensor:
    """Fixed in number, with score and class: the first ten."""
    rows = []
    for z, b in zip(y, boxes, strict=True):
        best = z.sigmoid().max(1)
        top = best.values.topk(10)
        label = best.indices[top.indices].to(b)
        rows.append(torch.cat([_corners(b)[top.indices], top.values[:, None], label[:, None]], 1))
    return torch.stack(rows)


FORMS: dict[str, Any] = {
    "lists": _lists,
    "sigmoid queries": lambda y, boxes, size: _detr(y, boxes, size, False),
    "softmax queries": lambda y, boxes, size: _detr(y, boxes, size, True),
    "yolo with its own score": lambda y, boxes, _: torch.cat([boxes, y[..., :1] * 0 + 1, y.sigmoid()], 2),
    "yolo": lambda y, boxes, _: torch.cat([boxes, y.sigmoid()], 2).transpose(1, 2),
    "yolo and more": lambda y, boxes, _: (torch.cat([boxes, y.sigmoid()], 2).transpose(1, 2), [y]),
    "final": _final,
}


def scene(red: tuple[int, int] = (1, 2), blue: tuple[int, int] = (4, 5), height: int = 48, width: int = 64) -> Tensor:
    """A grey picture with a red and a blue square, each filling the cell at (row, column); ``1 3 h w``."""
    x = torch.full((1, 3, height, width), 0.2)
    for colour, (row, column) in ((0, red), (2, blue)):
        at = slice(row * CELL, (row + 1) * CELL), slice(column * CELL, (column + 1) * CELL)
        x[0, :, at[0], at[1]] = 0.0
        x[0, colour, at[0], at[1]] = 1.0 if colour == 0 else 0.9
    return x
