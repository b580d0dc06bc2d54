"""What it gives to lay a map at the true centres of its cells: pointing game and energy inside, against an even spread.

    python benchmarks/centres.py MATERIAL WEIGHTS [--every 2] [--out FILE.md]

MATERIAL as for `localisation.py`, with `imagenet_groups` (class: indices); WEIGHTS is a folder with `models.py`, whose
`ZOO` holds a network, its input size, mean and std, and whose `load` gives it with its weights. Every picture is also
turned upside down, with its mask, so that it does not matter where in a picture things mostly are. *even*: the cells
spread from edge to edge; *true*: at their centres, also where they are so near the even spread that maps are not laid
there; *opposite*: moved as far the other way, which should do harm.
"""

import argparse
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from localisation import mask_of, pairs, scores
from PIL import Image
from torch import Tensor, nn

import camlucida as cl
from camlucida.core import probe
from camlucida.frame import Preprocess
from camlucida.maps import Centres
from camlucida.types import Loaded

Case = tuple[Image.Image, list[int], Tensor]  # a picture, the outputs that mean what it shows, and where that is
WAYS = ("even", "true", "opposite")


def built_in(material: Path, model: Loaded) -> Iterator[Case]:
    for file, label, mask in pairs(material, model.labels):
        with Image.open(file) as opened:
            yield opened.convert("RGB"), [model.labels.index(label)], mask


def imagenet(material: Path) -> Iterator[Case]:
    told = json.loads((material / "annotations.json").read_text())
    for one in told["images"]:
        for kind in {box["class"] for box in one["boxes"]} & set(told["imagenet_groups"]):
            with Image.open(material / one["file"]) as opened:
                yield opened.convert("RGB"), told["imagenet_groups"][kind], mask_of(one, material, [kind])


def ways(e: cl.Explanation) -> dict[str, cl.Explanation]:
    """The same map, laid in three ways."""
    if e.centres is None:
        return dict.fromkeys(WAYS, e)
    sides = zip(e.pictures.space, e.centres.start, e.centres.stride, e.map.shape[1:], strict=True)
    back = Centres(tuple(size - a - (n - 1) * t for size, a, t, n in sides), e.centres.stride)
    return dict(zip(WAYS, (replace(e, centres=c) for c in (None, e.centres, back)), strict=True))


def measured(net: Any, cases: Iterator[Case], look: Preprocess | None, every: int) -> tuple[Tensor, cl.Explanation]:
    """Energy and pointing of each way, on each picture that counts as it is and upside down."""
    found = []
    for picture, meant, mask in list(cases)[::every]:
        for turned in (False, True):
            shown = picture.rotate(180) if turned else picture
            where = mask.flip(0, 1) if turned else mask
            best = [k for k in cl.explain(net, shown, preprocess=look).logits[0].topk(5).indices.tolist() if k in meant]
            if best and mask.any():
                e = cl.explain(net, shown, target=best[0], preprocess=look)
                found.append([scores(way, where)[:2] for way in ways(e).values()])
    return torch.tensor(found), e


def line(name: str, rows: Tensor, e: cl.Explanation) -> str:
    """A line of the table: means, and how much more energy the true centres give, with its standard error."""
    energy, pointing = rows[..., 0], rows[..., 1]
    gain = energy[:, 1] - energy[:, 0]
    error = float(gain.std()) / len(gain) ** 0.5
    shown = " | ".join(f"{float(m):.3f}" for m in (*energy.mean(0), *pointing.mean(0)))
    grid = "×".join(map(str, e.map.shape[1:]))
    told = f"{name} | {grid}, {e.centres or 'even'} | {len(rows)}"
    return f"| {told} | {shown} | {float(gain.mean()):+.3f} ± {error:.3f} |"


def opened(folder: Path) -> ModuleType:
    told = importlib.util.spec_from_file_location("weights_models", folder / "models.py")
    found = importlib.util.module_from_spec(told)  # type: ignore[arg-type]
    told.loader.exec_module(found)  # type: ignore[union-attr]
    return found


def symmetric(models: ModuleType, name: str) -> nn.Module:
    """The same weights, padded the same on both sides of each axis, as PyTorch's own networks are."""
    net, same = models.load(name), models.load(name)
    net = models.MobileNetV2(same=False) if name == "mobilenet_v2" else net
    net.load_state_dict(same.state_dict())
    return net.eval()


def main(material: Path, weights: Path, every: int) -> str:
    """The table, as text."""
    models = opened(weights)
    lines = [f"| network | map | cases | {' | '.join(f'energy, {w}' for w in WAYS)} |"]
    lines[0] += f" {' | '.join(f'pointing, {w}' for w in WAYS)} | more energy |"
    lines.append("|" + "---|" * 10)
    model = cl.load("builtin")
    lines.append(line("built in", *measured(model, built_in(material, model), None, every)))
    print(lines[-1], flush=True)
    for name in ("squeezenet1_1", "mobilenet_v1_075", "mobilenet_v1_025", "mobilenet_v2", "mobilenet_v2, symmetric"):
        key, _, kind = name.partition(", ")
        _, side, mean, std, _ = models.ZOO[key]
        net = symmetric(models, key) if kind else models.load(key)
        lines.append(line(name, *measured(net, imagenet(material), Preprocess((side, side), mean, std), every)))
        print(lines[-1], flush=True)
    return "\n".join(lines)


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("material", type=Path)
    words.add_argument("weights", type=Path)
    words.add_argument("--every", type=int, default=1, help="one picture in so many")
    words.add_argument("--out", type=Path)
    asked = words.parse_args()
    torch.set_num_threads(1)
    probe._SEEN = 0.0  # however little it is
    table = main(asked.material, asked.weights, asked.every)
    if asked.out:
        some = f", one case in {asked.every}" if asked.every > 1 else ""
        asked.out.write_text(f"# Maps at the true centres of their cells{some}\n\n{table}\n", encoding="utf-8")
