"""Where in a scan the evidence lies: a lump of one of two kinds in a noisy body, and the map back on the scan's grid.

    python examples/volume.py [--steps 60] [--out volume]

The scan is 1 × 1 × 5 mm, its axes go to the left and to the back, as they often do in hospitals. With nibabel
(``camlucida[volume]``) scan and map are written as NIfTI, which any viewer lays over each other.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl
from camlucida.volumes import open_volume

SHAPE = (24, 24, 8)
AFFINE = np.array([[-1.0, 0, 0, 12], [0, -1, 0, 12], [0, 0, 5, -20], [0, 0, 0, 1]])


def scans(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Volumes ``b 1 i j k`` of a body with a lump in it, whether it is bright (1) or dark (0), and its mask."""
    y = torch.randint(2, (count,), generator=draw)
    place = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in SHAPE), indexing="ij"), -1)
    half = torch.tensor(SHAPE) / 2
    body = (((place - half) / half / 0.9) ** 2).sum(-1) < 1
    at = half * (1 + torch.rand(count, 1, 1, 1, 3, generator=draw) - 0.5)
    mask = (((place - at) / torch.tensor([4, 4, 2])) ** 2).sum(-1) < 1
    x = 0.5 * body + 0.1 * torch.randn(count, *SHAPE, generator=draw) + (0.8 * y - 0.4).view(-1, 1, 1, 1) * mask
    return x[:, None], y, mask


def net() -> nn.Module:
    """Three convolutions and global max pooling: what is small counts as much as what is large."""
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d((2, 2, 1)),
        nn.Conv3d(8, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(),
        nn.Conv3d(16, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(),
        nn.AdaptiveMaxPool3d(1), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip


def trained(steps: int, seed: int = 0) -> nn.Module:
    """A net after so many steps."""
    torch.manual_seed(seed)
    draw, model = torch.Generator().manual_seed(seed), net()
    rule = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        x, y, _ = scans(16, draw)
        loss = F.cross_entropy(model(x), y)
        rule.zero_grad()
        loss.backward()
        rule.step()
    return model.eval()


def main(out: str = "volume", steps: int = 60) -> float:
    """Train, explain a scan, write everything, and tell how near the strongest evidence is to the lump."""
    model, folder = trained(steps), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    x, y, mask = scans(20, torch.Generator().manual_seed(99))
    bright = y == 1
    e = cl.explain(model, x[bright], target=1, layer="9")
    hit = [bool(mask[bright][i].flatten()[e.heatmap(i).argmax()]) for i in range(len(e))]
    with torch.no_grad():
        right = (model(x).argmax(1) == y).float().mean()
    print(f"right {right:.0%}; the strongest evidence lies in the lump {np.mean(hit):.0%} of the times")
    one = _scan(x[bright][0, 0].numpy(), folder)
    shown = cl.explain(model, one, target=1, layer="9")
    shown.panel().save(folder / "planes.png")
    shown.overlay().save(folder / "slices.png")
    if isinstance(one, Path):
        shown.save(folder / "heat.nii.gz")
    print(f"the pictures: {folder / 'planes.png'} and {folder / 'slices.png'}")
    return float(np.mean(hit))


def _scan(data: np.ndarray, folder: Path) -> object:
    """A NIfTI file of the scan, or without nibabel the scan itself."""
    try:
        import nibabel
    except ImportError:
        return open_volume(data)
    nibabel.Nifti1Image(data, AFFINE).to_filename(folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--steps", type=int, default=60)
    words.add_argument("--out", default="volume")
    asked = words.parse_args()
    main(asked.out, asked.steps)
