"""Where in a video the evidence lies: a net tells whether a ball goes right or left, and its evidence follows the ball.

    python examples/video.py [--steps 50] [--out video]

A second ball jumps about and says nothing. No single frame tells the classes apart. The film of the overlays is written
as GIF, and with PyAV (``camlucida[video]``) as MP4.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl
from camlucida.clips import open_video

FRAMES, SIDE, BALL = 8, 32, 6
LOOK = cl.Preprocess((SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3, crop=1.0)


def videos(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Videos ``b 3 t h w``, whether the ball goes right (1) or left (0), and the ball's mask ``b t h w``."""
    y = torch.randint(2, (count,), generator=draw)
    t = torch.arange(FRAMES)
    across = 2 + 3 * t + torch.randint(0, 4, (count, 1), generator=draw)
    across = torch.where(y[:, None] == 1, across, SIDE - BALL - across)
    down = torch.randint(0, SIDE - BALL, (count, 1), generator=draw).expand(-1, FRAMES)
    jumps = torch.randint(0, SIDE - BALL, (2, count, FRAMES), generator=draw)
    ball, other = _square(down, across), _square(*jumps)
    x = 0.1 * torch.rand(count, 3, FRAMES, SIDE, SIDE, generator=draw)
    return (x + 0.8 * (ball | other)[:, None]).clamp(max=1), y, ball


def _square(top: Tensor, left: Tensor) -> Tensor:
    at = torch.arange(SIDE)
    rows, columns = (at - top[..., None], at - left[..., None])
    return ((rows >= 0) & (rows < BALL))[..., :, None] & ((columns >= 0) & (columns < BALL))[..., None, :]


def net() -> nn.Module:
    """Two convolutions over time and space, and global average pooling."""
    return nn.Sequential(
        nn.Conv3d(3, 8, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2)), nn.BatchNorm3d(8), nn.ReLU(),
        nn.Conv3d(8, 16, (3, 5, 5), padding=(1, 2, 2)), nn.BatchNorm3d(16), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip


def trained(steps: int, seed: int = 0) -> nn.Module:
    """A net after so many steps."""
    torch.manual_seed(seed)
    draw, model = torch.Generator().manual_seed(seed), net()
    rule = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        x, y, _ = videos(12, draw)
        loss = F.cross_entropy(model(x), y)
        rule.zero_grad()
        loss.backward()
        rule.step()
    return model.eval()


def main(out: str = "video", steps: int = 50) -> float:
    """Train, explain a clip, write the film, and tell how often a frame's strongest evidence lies on the ball."""
    model, folder = trained(steps), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    x, y, ball = videos(20, torch.Generator().manual_seed(99))
    e = cl.explain(model, x, target=cl.classes(y.tolist()), layer="5")
    heat = torch.stack([e.heatmap(i) for i in range(len(e))])
    near = F.max_pool2d(ball.float(), 7, 1, 3).bool()  # a place of the map sees a few pixels around itself
    hit = near.flatten(2).gather(2, heat.flatten(2).argmax(2)[..., None]).float().mean()
    with torch.no_grad():
        right = (model(x).argmax(1) == y).float().mean()
    print(f"right {right:.0%}; a frame's strongest evidence lies on the ball that moves {hit:.0%} of the times")
    frames = (x[0].movedim(0, -1) * 255).round().byte().numpy()
    clip = open_video(np.ascontiguousarray(frames), frames=FRAMES, rate=8.0)
    shown = cl.explain(model, clip, preprocess=LOOK, layer="5")
    shown.panel().save(folder / "frames.png")
    for suffix in ("gif", "mp4"):
        try:
            shown.save(folder / f"film.{suffix}")
        except cl.CamlucidaError as problem:
            print(problem)
    print(f"the films and {folder / 'frames.png'}")
    return float(hit)


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--steps", type=int, default=50)
    words.add_argument("--out", default="video")
    asked = words.parse_args()
    main(asked.out, asked.steps)
