"""Right for the right reason: train with a loss on where the evidence lies.

    python examples/supervise.py [--steps 200] [--seed 0]

Each picture shows a disc or a cross, and in a corner a small bright tag that gives the class away in training.
A net trained on the classes alone reads the tag. With a second loss, the share of the positive Grad-CAM map
that lies outside the shape, through `camlucida.supervised`, it reads the shape. The test pictures have tags by lot.
"""

import argparse
import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl

SIDE = 32


def pictures(count: int, agree: float, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, their classes (0: disc, 1: cross), and masks of the shapes; tags agree with the class as told."""
    y = torch.randint(2, (count,), generator=draw)
    at = torch.arange(SIDE) - torch.randint(12, SIDE - 10, (2, count, 1), generator=draw)
    down, across = at[0][:, :, None], at[1][:, None, :]
    radius = torch.randint(5, 8, (count, 1, 1), generator=draw)
    disc = down**2 + across**2 <= radius**2
    cross = disc & (torch.minimum(down.abs(), across.abs()) <= 1)
    mask = torch.where(y[:, None, None] == 0, disc, cross).float()
    x = 0.6 * torch.rand(count, 1, SIDE, SIDE, generator=draw) + 0.5 * mask[:, None]
    told = torch.where(torch.rand(count, generator=draw) < agree, y, 1 - y)
    for i, side in enumerate(told.tolist()):
        x[i, 0, 1:4, 1 + 26 * side : 4 + 26 * side] = 2.0
    return x, y, mask


def net() -> nn.Module:
    """Three convolutions and a GAP head: a place of the last one sees 9 × 9 pixels, so no tag from within a shape."""
    widths = (1, 16, 32, 32)
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layers += [nn.Conv2d(a, b, 3, stride=1 + (i > 0), padding=1), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 2))


def trained(steps: int, share: float, seed: int) -> nn.Module:
    """A net after so many steps, with ``share`` of the loss on where the evidence lies."""
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = net()
    rule = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        x, y, mask = pictures(32, 1.0, draw)
        if share:
            logits, maps = cl.supervised(model, x, target=cl.classes(y.tolist()), layer="8")
            inside = F.adaptive_max_pool2d(mask[:, None], maps.shape[1:])[:, 0]
            positive = maps.relu()
            outside = (positive * (1 - inside)).sum((1, 2)) / (positive.sum((1, 2)) + 1e-6)
            loss = F.cross_entropy(logits, y) + share * outside.mean()
        else:
            loss = F.cross_entropy(model(x), y)
        rule.zero_grad()
        loss.backward()
        rule.step()
    return model.eval()


def judged(model: nn.Module, seed: int = 99) -> tuple[float, float]:
    """On pictures whose tags are drawn by lot: accuracy, and the share of the evidence inside the shape."""
    x, y, mask = pictures(500, 0.5, torch.Generator().manual_seed(seed))
    e = cl.explain(model, x, target=cl.classes(y.tolist()), layer="8")
    with torch.no_grad():
        right = (model(x).argmax(1) == y).float().mean()
    positive = e.map.relu()
    inside = F.adaptive_max_pool2d(mask[:, None], positive.shape[1:])[:, 0]
    shown = positive.sum((1, 2)) > 0
    share = (positive * inside).sum((1, 2))[shown] / positive.sum((1, 2))[shown]
    return float(right), float(share.mean())


def main(steps: int = 200, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Train both nets and tell what each reads."""
    found = {}
    for name, share in (("classes alone", 0.0), ("and where the evidence lies", 1.0)):
        found[name] = judged(trained(steps, share, seed))
        right, inside = found[name]
        print(f"{name:28} accuracy without the help of tags {right:6.1%}   evidence inside the shape {inside:6.1%}")
    return found


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--steps", type=int, default=200)
    words.add_argument("--seed", type=int, default=0)
    asked = words.parse_args()
    main(asked.steps, asked.seed)
