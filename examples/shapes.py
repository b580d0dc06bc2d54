"""Does a network that was only ever told *what* is in a picture know *where* it is?

A small network with a global average pooling head learns six drawn shapes, one a picture, in under a minute on a
laptop's processor. Then it sees pictures with two different shapes, which it never met in training, and camlucida
shows for each of the two where the evidence lies.

    python examples/shapes.py out/demo.png
"""

import math
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

import camlucida as cl
from camlucida import view

NAMES = ("circle", "square", "triangle", "star", "cross", "ring")
SIDE = 48
Box = tuple[float, float, float, float]


def corners(count: int, cx: float, cy: float, r: float, turn: float, dent: float = 1.0) -> list[tuple[float, float]]:
    """A regular polygon; ``dent`` below 1 pulls every other corner in, which makes a star of it."""
    radii = [r * (dent if i % 2 else 1) for i in range(count)]
    angles = [turn + i * 2 * math.pi / count for i in range(count)]
    return [(cx + far * math.sin(at), cy - far * math.cos(at)) for far, at in zip(radii, angles, strict=True)]


def draw_shape(pen: ImageDraw.ImageDraw, kind: str, box: Box, colour: tuple[int, ...], chance: random.Random) -> None:
    cx, cy, r = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, (box[2] - box[0]) / 2
    turn = chance.uniform(-0.3, 0.3)
    if kind == "circle":
        pen.ellipse(box, fill=colour)
    elif kind == "ring":
        pen.ellipse(box, outline=colour, width=max(3, int(r * 0.35)))
    elif kind == "cross":
        for angle in (turn, turn + math.pi / 2):
            dx, dy = r * math.sin(angle), r * math.cos(angle)
            pen.line((cx - dx, cy - dy, cx + dx, cy + dy), fill=colour, width=max(4, int(r * 0.5)))
    else:
        sides, dent, start = {"square": (4, 1.0, math.pi / 4), "triangle": (3, 1.0, 0.0), "star": (10, 0.42, 0.0)}[kind]
        pen.polygon(corners(sides, cx, cy, r, start + turn, dent), fill=colour)


def ground(chance: random.Random, side: int) -> Image.Image:
    """A cluttered background: soft noise and a few lines that belong to no shape, darker than the shapes."""
    noise = np.random.default_rng(chance.randrange(2**32)).integers(0, 110, (6, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(3):
        ends = [chance.random() * side for _ in range(4)]
        pen.line(ends, fill=tuple(chance.choices(range(160), k=3)), width=side // SIDE)
    return picture


def draw(kinds: tuple[str, ...], chance: random.Random, side: int = SIDE) -> tuple[Image.Image, list[Box]]:
    """A picture with these shapes, side by side without touching, and their boxes."""
    picture, boxes = ground(chance, side), []
    pen = ImageDraw.Draw(picture)
    slot = side / len(kinds)
    for i, kind in enumerate(kinds):
        r = chance.uniform(0.34, 0.46) * min(slot, side / 2)
        cx, cy = chance.uniform(i * slot + r + 1, (i + 1) * slot - r - 1), chance.uniform(r + 1, side - r - 1)
        boxes.append((cx - r, cy - r, cx + r, cy + r))
        draw_shape(pen, kind, boxes[-1], tuple(chance.choices(range(150, 256), k=3)), chance)
    return picture, boxes


def block(inner: int, outer: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)
    )


class ShapeNet(nn.Module):
    """Five convolutions, a global average, one linear layer: the last feature maps are maps of the classes."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 48, 64, 64)
        steps = (2, 2, 1, 1, 1)
        self.features = nn.Sequential(*map(block, widths, widths[1:], steps))
        self.fc = nn.Linear(widths[-1], len(NAMES))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def pictures(count: int, chance: random.Random) -> tuple[Tensor, Tensor]:
    """So many pictures with one shape each, ready for the net, and which shape it is."""
    labels = [chance.randrange(len(NAMES)) for _ in range(count)]
    pixels = np.stack([np.asarray(draw((NAMES[k],), chance)[0]) for k in labels])
    return torch.from_numpy(pixels).movedim(3, 1).float() / 127.5 - 1, torch.tensor(labels)


def train(steps: int, seed: int = 0) -> tuple[ShapeNet, float]:
    """Train for so many batches; the net and its accuracy on pictures it has not seen."""
    torch.manual_seed(seed)
    net, (drawn, shapes) = ShapeNet(), pictures(3000, random.Random(seed))
    optimiser = torch.optim.AdamW(net.parameters(), 4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps + 1)
    for _ in range(steps):
        some = torch.randint(len(drawn), (48,))
        turned = torch.rot90(drawn[some], int(torch.randint(4, ())), (2, 3))[:, torch.randperm(3)]  # new colours, too
        loss = nn.functional.cross_entropy(net(turned), shapes[some], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    net.eval()
    x, y = pictures(500, random.Random(seed + 1))
    with torch.no_grad():
        return net, float((net(x).argmax(1) == y).float().mean())


def peak_is_inside(heat: Tensor, box: Box) -> bool:
    at = int(heat.argmax())
    y, x = divmod(at, heat.shape[1])
    return bool(heat.max() > 0) and box[0] <= x + 0.5 <= box[2] and box[1] <= y + 0.5 <= box[3]


def main(path: str = "out/demo.png", steps: int = 300) -> None:
    start = time.monotonic()
    net, accuracy = train(steps)
    took = time.monotonic() - start
    print(f"one shape a picture, unseen: {accuracy:.1%} right (trained for {took:.0f} s)")
    look = cl.Preprocess((SIDE, SIDE), mean=(0.5,) * 3, std=(0.5,) * 3, crop=1.0)
    chance, rows, labels, hits, asked = random.Random(7), [], [], 0, 0
    for number in range(100):
        kinds = tuple(chance.sample(NAMES, 2))
        picture, boxes = draw(kinds, chance, side=224)
        explained = cl.sweep(net, picture, targets=[NAMES.index(k) for k in kinds], preprocess=look)
        hits += sum(peak_is_inside(e.heatmap(), box) for e, box in zip(explained, boxes, strict=True))
        asked += len(kinds)
        if number < 5:
            rows.append([picture, *(e.overlay() for e in explained)])
            labels.append(f"{kinds[0]} and {kinds[1]}")
    print(f"two shapes a picture, never trained on: the map's peak lies in the right shape {hits} of {asked} times")
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    view.montage(rows, row_labels=labels, column_labels=["picture", "why the first?", "why the second?"]).save(file)
    print(f"the picture: {file}")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
