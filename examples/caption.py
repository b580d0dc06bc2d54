"""Which part of the picture does each word of a caption come from: a captioner, trained in a minute.

    python examples/caption.py [out/caption.png] [--steps 400] [--seed 0]

Each picture shows two coloured shapes; the captioner says them from left to right, "a red square and a blue disc". It
has a convolutional eye and a decoder that attends to the eye's places. `cl.token_at` asks for one word, given the
picture and the words before it. Captioners and visual assistants of transformers are asked in the same way, with
``{"pixel_values": …, "input_ids": …}``.
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
WORDS = ("<start>", "a", "and", *COLOURS, *SHAPES)
HEIGHT, WIDTH = 32, 64


def pictures(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures ``n 3 h w``, their captions ``n 8``, and where the left and the right shape are, ``n 2 h w``."""
    x = 0.35 + 0.08 * torch.randn(count, 3, HEIGHT, WIDTH, generator=draw)
    said, where = torch.zeros(count, 8, dtype=torch.long), torch.zeros(count, 2, HEIGHT, WIDTH)
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    for i in range(count):
        colours = torch.randperm(4, generator=draw)[:2].tolist()
        shapes = torch.randint(3, (2,), generator=draw).tolist()
        for side, (c, s) in enumerate(zip(colours, shapes, strict=True)):
            jitter = torch.randint(-5, 6, (2,), generator=draw)
            down, across = rows - 16 - jitter[0], columns - 16 - 32 * side - jitter[1]
            near = torch.maximum(down.abs(), across.abs())
            cross = (near <= 8) & (torch.minimum(down.abs(), across.abs()) <= 2)
            shape = (near <= 7, down**2 + across**2 <= 64, cross)[s]
            where[i, side] = shape.float()
            x[i][:, shape] = torch.tensor(list(COLOURS.values())[c])[:, None]
            said[i, 1 + 4 * side : 4 + 4 * side] = torch.tensor([1, 3 + c, 7 + s])
        said[i, 4] = 2
    return x, said, where


class Captioner(nn.Module):
    """A convolutional eye with 8 × 16 places, and two layers of a decoder that attend to them."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b, stride in ((3, 12, 2), (12, 24, 2), (24, width, 1)):
            layers += [nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU()]
        self.eye = nn.Sequential(*layers)
        self.places = nn.Parameter(torch.randn(1, HEIGHT * WIDTH // 16, width) * 0.5)
        self.words, self.order = nn.Embedding(len(WORDS), width), nn.Parameter(torch.randn(1, 8, width) * 0.5)
        layer = nn.TransformerDecoderLayer(width, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.decoder, self.head = nn.TransformerDecoder(layer, 2), nn.Linear(width, len(WORDS))

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> dict[str, Tensor]:
        """The scores of the next word after each."""
        seen = self.eye(pixel_values).flatten(2).mT + self.places
        length = input_ids.shape[1]
        later = torch.triu(torch.ones(length, length, dtype=torch.bool, device=seen.device), 1)
        said = self.words(input_ids) + self.order[:, :length]
        return {"logits": self.head(self.decoder(said, seen, tgt_mask=later))}


def trained(steps: int, seed: int) -> Captioner:
    """The captioner after so many steps of teacher forcing."""
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = Captioner()
    rule = torch.optim.AdamW(net.parameters(), lr=1e-3)
    pace = torch.optim.lr_scheduler.OneCycleLR(rule, 4e-3, total_steps=steps)
    x, said, _ = pictures(512, draw)
    for _ in range(steps):
        some = torch.randint(len(x), (32,), generator=draw)
        y = net(x[some], said[some])["logits"]
        loss = F.cross_entropy(y[:, :-1].flatten(0, 1), said[some][:, 1:].flatten())
        rule.zero_grad()
        loss.backward()
        rule.step()
        pace.step()
    return net.eval()


def main(path: str = "out/caption.png", steps: int = 400, seed: int = 0) -> dict[str, float]:
    """Train, ask for each telling word, and draw."""
    net = trained(steps, seed)
    x, said, _ = pictures(60, torch.Generator().manual_seed(99))
    given = {"pixel_values": x, "input_ids": said}
    asked = {2: "first colour", 3: "first shape", 6: "second colour", 7: "second shape"}
    maps = cl.sweep(net, given, targets=[cl.token_at(said, at) for at in asked], methods=["hirescam"])
    with torch.no_grad():
        right = net(**given)["logits"][:, :-1].argmax(2) == said[:, 1:]
    found = {"words right": float(right.float().mean())}
    for e, (at, name) in zip(maps, asked.items(), strict=True):
        side = int(at > 4)
        heat = torch.stack([e.heatmap(i) for i in range(len(x))])
        own = heat[..., 32 * side : 32 * (side + 1)].sum((1, 2)) / heat.sum((1, 2)).clamp(min=1e-9)
        found[f"evidence for the {name} on its side"] = float(own.mean())
    for name, value in found.items():
        print(f"{name:42} {value:6.1%}")
    drawn(path, maps, said)
    return found


def drawn(path: str, maps: list[cl.Explanation], said: Tensor) -> None:
    """Four pictures, each beside the overlays of its telling words."""
    pages = []
    for i in range(4):
        told = [WORDS[int(said[i, at])] for at in (2, 3, 6, 7)]
        cells = [maps[0].pictures.image(i), *(e.overlay(i) for e in maps)]
        pages.append(view.montage([cells], column_labels=["picture", *told], side=160))
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    view.montage([[page] for page in pages], side=max(pages[0].size)).save(file)
    print(f"the picture: {file}")


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("path", nargs="?", default="out/caption.png")
    words.add_argument("--steps", type=int, default=400)
    words.add_argument("--seed", type=int, default=0)
    told = words.parse_args()
    main(told.path, told.steps, told.seed)
