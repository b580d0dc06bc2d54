"""Where in the picture is what a text names, and which picture does a text mean: a CLIP-like net, trained in seconds.

    python examples/prompts.py [out/prompts.png] [--steps 400] [--seed 0]

Each picture shows three coloured shapes. A tower for pictures and one for texts learn by contrast, as SigLIP does,
which texts ("a red square") are true of which pictures; nobody tells them where. `cl.zero_shot` makes a classifier of
the two, whose classes are any texts: its maps show where each text is true. For trained models it is one line,
``cl.load("clip/openai/clip-vit-base-patch32", prompts=["a dog", "a cat"])``.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl
from camlucida import view

COLOURS = {"red": (0.9, 0.2, 0.2), "green": (0.2, 0.8, 0.3), "blue": (0.25, 0.35, 0.95), "yellow": (0.9, 0.85, 0.2)}
SHAPES = ("square", "disc", "cross")
WORDS = ("a", *COLOURS, *SHAPES)
TEXTS = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
SIDE = 48


def tokens(texts: list[str]) -> Tensor:
    """Each word's number, ``k 3``."""
    return torch.tensor([[WORDS.index(word) for word in text.split()] for text in texts])


def pictures(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures ``n 3 h w``, the texts that are true of each ``n 12``, and where each of them is, ``n 12 h w``."""
    x = 0.35 + 0.08 * torch.randn(count, 3, SIDE, SIDE, generator=draw)
    where = torch.zeros(count, len(TEXTS), SIDE, SIDE)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    for i in range(count):
        spots = torch.randperm(4, generator=draw)[:3]
        for spot, k in zip(spots.tolist(), torch.randperm(len(TEXTS), generator=draw)[:3].tolist(), strict=True):
            jitter = torch.randint(-2, 3, (2,), generator=draw)
            down, across = rows - 12 - 24 * (spot // 2) - jitter[0], columns - 12 - 24 * (spot % 2) - jitter[1]
            near = torch.maximum(down.abs(), across.abs())
            shape = {
                "square": near <= 6,
                "disc": down**2 + across**2 <= 45,
                "cross": (near <= 7) & (torch.minimum(down.abs(), across.abs()) <= 1),
            }[TEXTS[k].split()[2]]
            where[i, k] = shape.float()
            x[i][:, shape] = torch.tensor(COLOURS[TEXTS[k].split()[1]])[:, None]
    return x, where.amax((2, 3)), where


class TwoTowers(nn.Module):
    """Pictures by convolutions and a global average, texts by the sum of their words; both end as unit vectors."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b, stride in ((3, 12, 2), (12, 24, 2), (24, 48, 1), (48, 48, 1)):
            layers += [nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU()]
        self.places = nn.Sequential(*layers)
        self.picture = nn.Linear(48, width)
        self.words = nn.Embedding(len(WORDS), 32)
        self.text = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, width))
        self.logit_scale, self.logit_bias = nn.Parameter(torch.tensor(2.3)), nn.Parameter(torch.tensor(-3.0))

    def encode_image(self, x: Tensor) -> Tensor:
        return self.picture(self.places(x).mean((2, 3)))

    def encode_text(self, texts: Tensor) -> Tensor:
        return self.text(self.words(texts).sum(1))

    def forward(self, x: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of every text for every picture, and the other way round."""
        y = F.normalize(self.encode_image(x), dim=1) @ F.normalize(self.encode_text(texts), dim=1).T
        y = y * self.logit_scale.exp() + self.logit_bias
        return y, y.T


def trained(steps: int, seed: int) -> TwoTowers:
    """The towers after so many steps of contrast: is this text true of this picture?"""
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = TwoTowers()
    rule = torch.optim.AdamW(net.parameters(), lr=4e-3)
    pace = torch.optim.lr_scheduler.OneCycleLR(rule, 8e-3, total_steps=steps)
    x, true, _ = pictures(512, draw)
    for _ in range(steps):
        some = torch.randint(len(x), (32,), generator=draw)
        loss = F.binary_cross_entropy_with_logits(net(x[some], tokens(TEXTS))[0], true[some])
        rule.zero_grad()
        loss.backward()
        rule.step()
        pace.step()
    return net.eval()


def main(path: str = "out/prompts.png", steps: int = 400, seed: int = 0) -> dict[str, float]:
    """Train, ask for every text that is true, rank the pictures for one text, and draw."""
    net = trained(steps, seed)
    x, true, where = pictures(60, torch.Generator().manual_seed(99))
    classifier = cl.zero_shot(net, (x, tokens(TEXTS)))
    maps = cl.sweep(classifier, x, targets=[cl.labels(k) for k in range(len(TEXTS))])
    found = {"texts right": float(((classifier(x) > 0).float() == true).float().mean())}
    inside, anywhere = [], []
    for k, e in enumerate(maps):
        for i in true[:, k].nonzero()[:, 0].tolist():
            heat, shape = e.heatmap(i), F.max_pool2d(where[i : i + 1, k], 7, 1, 3)[0]
            inside.append(float((heat * shape).sum() / heat.sum().clamp(min=1e-9)))
            anywhere.append(float(shape.mean()))
    found |= {"evidence at what is named": sum(inside) / len(inside), "its area": sum(anywhere) / len(anywhere)}
    text = TEXTS.index("a red square")
    best = maps[text].scores.argsort(descending=True)[: int(true[:, text].sum())]
    found["pictures found for 'a red square'"] = float(true[best, text].mean())
    for name, value in found.items():
        print(f"{name:36} {value:6.1%}")
    drawn(path, true, maps)
    return found


def drawn(path: str, true: Tensor, maps: list[cl.Explanation]) -> None:
    """Four pictures, and beside each the overlays of its three texts."""
    pages = []
    for i in range(4):
        texts = true[i].nonzero()[:, 0].tolist()
        cells = [maps[0].pictures.image(i), *(maps[k].overlay(i) for k in texts)]
        pages.append(view.montage([cells], column_labels=["picture", *(TEXTS[k] for k in texts)], side=160))
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    view.montage([[page] for page in pages], side=max(pages[0].size)).save(file)
    print(f"the picture: {file}")


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("path", nargs="?", default="out/prompts.png")
    words.add_argument("--steps", type=int, default=400)
    words.add_argument("--seed", type=int, default=0)
    asked = words.parse_args()
    main(asked.path, asked.steps, asked.seed)
