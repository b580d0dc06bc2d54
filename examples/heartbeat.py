"""Where in a signal the evidence lies: a net learns to find one kind of beat among others, and shows which it read.

    python examples/heartbeat.py [--steps 60] [--out heartbeat.png]

Each signal has three channels with noise and slow drift, and some beats in them. One class has among them one beat that
is upside down, in channel 1; the net is told the class alone, and never where that beat is.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl

LENGTH, WIDTH = 160, 16


def signals(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Signals ``b 3 n``, their classes, and where the odd beat begins (it is an ordinary one in class 0)."""
    y = torch.randint(2, (count,), generator=draw)
    x = 0.15 * torch.randn(count, 3, LENGTH, generator=draw)
    x += torch.sin(torch.linspace(0, 6, LENGTH) + 6 * torch.rand(count, 3, 1, generator=draw))
    beat = 3 * torch.exp(-((torch.arange(WIDTH) - WIDTH / 2) ** 2) / 8)
    # four places that do not overlap, one of them for the odd beat
    where = torch.stack([torch.randperm(LENGTH // WIDTH - 1, generator=draw)[:4] for _ in range(count)]) * WIDTH
    for i in range(count):
        for k, start in enumerate(where[i].tolist()):
            x[i, 1, start : start + WIDTH] += -beat if k == 0 and y[i] else beat
    return x, y, where[:, 0]


def net() -> nn.Module:
    """Two convolutions and global max pooling; a place of the map sees 17 samples."""
    return nn.Sequential(
        nn.Conv1d(3, 16, 9, padding=4), nn.BatchNorm1d(16), nn.ReLU(),
        nn.Conv1d(16, 16, 9, padding=4), nn.BatchNorm1d(16), nn.ReLU(),
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip


def trained(steps: int, seed: int = 0) -> nn.Module:
    """A net after so many steps."""
    torch.manual_seed(seed)
    draw, model = torch.Generator().manual_seed(seed), net()
    rule = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        x, y, _ = signals(16, draw)
        loss = F.cross_entropy(model(x), y)
        rule.zero_grad()
        loss.backward()
        rule.step()
    return model.eval()


def main(out: str = "heartbeat.png", steps: int = 60) -> float:
    """Train, explain, draw, and tell how often the strongest evidence lies on the odd beat or at its edge."""
    model = trained(steps)
    x, y, where = signals(60, torch.Generator().manual_seed(99))
    odd = y == 1
    e = cl.explain(model, x[odd], target=1, layer="5")
    heat = torch.stack([e.heatmap(i) for i in range(len(e))])
    middle = where[odd] + WIDTH / 2
    hit = float(((heat.argmax(1) - middle).abs() <= WIDTH).float().mean())
    with torch.no_grad():
        right = (model(x).argmax(1) == y).float().mean()
    print(f"right {right:.0%}; the strongest evidence lies at the odd beat {hit:.0%} of the times")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    e.panel(0, labels=["left wrist", "heart", "right wrist"], title="an upside-down beat · Grad-CAM").save(out)
    print(f"the picture: {out}")
    return hit


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--steps", type=int, default=60)
    words.add_argument("--out", default="heartbeat.png")
    asked = words.parse_args()
    main(asked.out, asked.steps)
