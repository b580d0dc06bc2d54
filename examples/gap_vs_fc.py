"""What does global average pooling cost, and what does it give, against fully connected layers?

One trunk with four heads: two fully connected layers, the same with dropout, the mean and a linear layer, a 1×1
convolution and the mean. Per seed all four start from the same trunk and see the same batches in the same order. They
learn to name a handwritten digit near the middle of a cluttered picture from a few hundred examples. Then they are
asked about digits that they have not seen, about digits that were moved, and where the evidence lies.

    python examples/gap_vs_fc.py out/gap-vs-fc --seeds 5
    python examples/gap_vs_fc.py --tune        # how each head's learning rate was chosen, on pictures of no test

OUT gets the table, the raw numbers and three plots. docs/gap-vs-fc.md says what they say. [lin2014, zhou2016]
"""

import argparse
import json
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import camlucida as cl
from camlucida import view
from camlucida.gap import GAPConv, GAPLinear, GAPNet

try:
    import matplotlib
    from scipy import stats
    from sklearn.datasets import load_digits
except ImportError as missing:
    sys.exit(f"This example needs scikit-learn and matplotlib ({missing}): pip install 'camlucida[examples]'")

SIDE, DIGIT, SCENE = 40, 16, 64  # pixels: what the net sees, the digit, and the scene that the net's window is cut from
ROOM = (SCENE - SIDE) // 2  # how far the window can be moved: as far as the digit stays inside
JITTER = 2  # in training the digit is this near the middle
SHIFTS = (0, 2, 4, 6, 8, 10, 12)
TRAIN, TEST, MOVED, MAPS = 500, 797, 400, 300  # pictures: to learn, to test, of those moved, of those explained
WIDTHS = (1, 16, 32, 32, 32)
GRID, HIDDEN, BATCH = SIDE // 4, 128, 50
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 0.016, 0.032, 0.064, 0.128)
RATE = {"FC": 0.016, "FC + dropout": 0.008, "GAP + linear": 0.064, "1×1 conv + GAP": 0.064}  # chosen by --tune
NIN = {"CIFAR-10, mlpconv (Table 5)": (11.59, 10.88, 10.41), "CIFAR-10, plain (Sec. 4.6)": (17.56, 15.99, 16.46)}
Data = tuple[Tensor, Tensor]  # pictures (n, 1, h, w) and classes (n)

# ---------------------------------------------------------------------------------------------------------- pictures


def digits() -> tuple[Data, Data]:
    """The 1,797 digits at twice their size, and parted once for all: a pool to train and tune on, a test."""
    found = load_digits()
    x = torch.from_numpy(found.images / 16).float()[:, None]
    x = nn.functional.interpolate(x, (DIGIT, DIGIT), mode="bilinear")
    y = torch.from_numpy(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2014))
    test, pool = order[:TEST], order[TEST:]
    return (x[pool], y[pool]), (x[test], y[test])


def scenes(shapes: Tensor, chance: torch.Generator, pieces: int = 16, part: int = 6) -> Tensor:
    """Each digit in the middle of a scene full of parts of other digits of the same set, as bright as it is."""
    n = len(shapes)
    canvas = torch.zeros(n, 1, SCENE, SCENE)
    at = torch.arange(part)
    everyone = torch.arange(n)[:, None, None]
    for _ in range(pieces):
        y, x = torch.randint(SCENE - part + 1, (2, n), generator=chance)
        v, u = torch.randint(DIGIT - part + 1, (2, n), generator=chance)
        whose = torch.randint(n, (n,), generator=chance)[:, None, None]
        piece = shapes[whose, 0, (v[:, None] + at)[:, :, None], (u[:, None] + at)[:, None]]
        where = (everyone, 0, (y[:, None] + at)[:, :, None], (x[:, None] + at)[:, None])
        canvas[where] = torch.maximum(canvas[where], piece)
    middle = slice((SCENE - DIGIT) // 2, (SCENE + DIGIT) // 2)
    canvas[:, :, middle, middle] = torch.maximum(0.5 * canvas[:, :, middle, middle], shapes)
    return canvas + 0.1 * torch.randn(canvas.shape, generator=chance)


def window(scene: Tensor, shift: Tensor) -> Tensor:
    """What the net sees of each scene, with the digit ``shift`` (n, 2) pixels below and right of the middle."""
    at = torch.arange(SIDE)
    rows, columns = (ROOM - shift[:, axis, None] + at for axis in (0, 1))
    return scene[torch.arange(len(scene))[:, None, None], 0, rows[:, :, None], columns[:, None]][:, None]


def boxes(shift: Tensor) -> Tensor:
    """Where in the window the digit is: a mask (n, SIDE, SIDE) of its DIGIT × DIGIT pixels."""
    at, start = torch.arange(SIDE), ROOM + shift
    rows, columns = ((at >= start[:, axis, None]) & (at < start[:, axis, None] + DIGIT) for axis in (0, 1))
    return rows[:, :, None] & columns[:, None]


def anywhere(n: int, chance: torch.Generator, reach: int) -> Tensor:
    """Shifts (n, 2), each axis even between −reach and reach."""
    return torch.randint(-reach, reach + 1, (n, 2), generator=chance)


def moved(n: int, far: int, chance: torch.Generator) -> Tensor:
    """Shifts (n, 2) of exactly ``far`` pixels, each in one of the four directions."""
    ways = torch.tensor([(-1, 0), (1, 0), (0, -1), (0, 1)])
    return far * ways[torch.randint(4, (n,), generator=chance)]


# -------------------------------------------------------------------------------------------------------------- nets


def trunk() -> nn.Sequential:
    """Four convolutions to 32 maps of 10×10; a place sees 26 pixels, more than a digit."""
    made: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(WIDTHS)):
        made += [nn.Conv2d(before, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        made += [nn.MaxPool2d(2)] if i < 2 else []
    return nn.Sequential(*made)


def fully_connected(dropout: float = 0.0) -> nn.Sequential:
    places = WIDTHS[-1] * GRID**2
    return nn.Sequential(
        nn.Flatten(), nn.Dropout(dropout), nn.Linear(places, HIDDEN), nn.ReLU(),
        nn.Dropout(dropout), nn.Linear(HIDDEN, 10),
    )  # fmt: skip


HEADS = {
    "FC": fully_connected,
    "FC + dropout": lambda: fully_connected(0.5),
    "GAP + linear": lambda: GAPLinear(WIDTHS[-1], 10),
    "1×1 conv + GAP": lambda: GAPConv(WIDTHS[-1], 10),
}


def network(head: str, seed: int) -> nn.Module:
    """The trunk of this seed with this head; the head's numbers are drawn after the trunk's, from a seed of its own."""
    torch.manual_seed(seed)
    features = trunk()
    torch.manual_seed(1000 * seed + list(HEADS).index(head))
    top = HEADS[head]()
    is_gap = isinstance(top, GAPLinear | GAPConv)
    return GAPNet(features, top) if is_gap else nn.Sequential(OrderedDict(features=features, head=top))


def train(net: nn.Module, data: Data, epochs: int, rate: float, seed: int) -> nn.Module:
    """AdamW, warm-up and cosine; the same batches in the same order for every head of a seed."""
    (x, y), chance = data, torch.Generator().manual_seed(seed)
    steps = epochs * (len(x) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps + 1)
    net.train().to(memory_format=torch.channels_last)  # the same sums, a quarter faster on a processor
    for _ in range(epochs):
        for some in torch.randperm(len(x), generator=chance)[: len(x) // BATCH * BATCH].split(BATCH):
            loss = nn.functional.cross_entropy(net(x[some]), y[some])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def right(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([net(part).argmax(1) for part in x.split(100)]) == y


# ------------------------------------------------------------------------------------------------------- one seed


def quality(heat: Tensor, inside: Tensor) -> Tensor:
    """(2, n): the share of the positive map inside the digit's box, and whether its peak is there; a blank map: 0."""
    total = heat.sum((1, 2))
    share = (heat * inside).sum((1, 2)) / total.clamp(min=1e-12)
    hit = inside.flatten(1).gather(1, heat.flatten(1).argmax(1, keepdim=True))[:, 0]
    return torch.stack([share, hit & (total > 0)])


def maps(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The heat of each picture's true class on its pixels, by method: all at the trunk's last layer."""
    methods = ["cam"] if isinstance(net, GAPNet) else ["gradcam", "hirescam"]
    found = cl.sweep(net, x, targets=[cl.classes(y.tolist())], methods=methods, layers=["features"])
    return {e.facts.title: torch.stack([e.heatmap(i) for i in range(len(e))]) for e in found}


def baselines(x: Tensor, inside: Tensor) -> dict[str, Tensor]:
    """Maps that know nothing of the net: the same everywhere, a digit's box in the middle, the ink of the picture."""
    even = inside.float().mean((1, 2))
    centre = boxes(torch.zeros(1, 2, dtype=torch.long)).float().expand(len(x), -1, -1)
    middle = inside[:, SIDE // 2, SIDE // 2].float()
    return {
        "chance (area)": torch.stack([even, even]),
        "centre": torch.stack([quality(centre, inside)[0], middle]),
        "the picture's ink": quality(x[:, 0].clamp(min=0), inside),
    }


def one_seed(pool: Data, test: Data, epochs: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """All four heads on one training set: their numbers, and what the picture grid is drawn from."""
    chance = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(pool[0]), generator=chance)[:TRAIN]
    learn = window(scenes(pool[0][chosen], chance), anywhere(len(chosen), chance, JITTER)), pool[1][chosen]
    scene, y = scenes(test[0], chance), test[1]
    near = window(scene, anywhere(len(y), chance, JITTER))
    shifted = [window(scene[:MOVED], moved(MOVED, far, chance)) for far in SHIFTS]
    shift = anywhere(MAPS, chance, ROOM)
    x, inside = window(scene[:MAPS], shift), boxes(shift)
    nets = {name: train(network(name, seed), learn, epochs, RATE[name], seed) for name in HEADS}
    answered = torch.stack([right(net, x, y[:MAPS]) for net in nets.values()]).all(0)
    heat = {(n, title): h for n, net in nets.items() for title, h in maps(net, x, y[:MAPS]).items()}
    scored = {f"{n}, {title}": quality(h, inside) for (n, title), h in heat.items()} | baselines(x, inside)
    numbers = {
        "train": {n: float(right(net, *learn).float().mean()) for n, net in nets.items()},
        "test": {n: float(right(net, near, y).float().mean()) for n, net in nets.items()},
        "shift": {n: [float(right(net, s, y[:MOVED]).float().mean()) for s in shifted] for n, net in nets.items()},
        "anywhere": {n: float(right(net, x, y[:MAPS]).float().mean()) for n, net in nets.items()},
        "share": {n: float(q[0, answered].mean()) for n, q in scored.items()},
        "pointing": {n: float(q[1, answered].mean()) for n, q in scored.items()},
        "share, all": {n: float(q[0].mean()) for n, q in scored.items()},
        "pointing, all": {n: float(q[1].mean()) for n, q in scored.items()},
        "answered": float(answered.float().mean()),
    }
    return numbers, {"x": x, "y": y, "shift": shift, "heat": heat, "nets": nets, "answered": answered}


def tune(pool: Data, epochs: int, seeds: int = 2) -> None:
    """Print each head's accuracy at each rate, near the middle, on pictures of the pool it was not trained on."""
    print(f"{'rate':16}" + "".join(f"{name:>16}" for name in HEADS))
    for rate in RATES:
        found = {name: list[float]() for name in HEADS}
        for seed in range(9000, 9000 + seeds):  # no seed that is reported
            chance = torch.Generator().manual_seed(seed)
            order = torch.randperm(len(pool[0]), generator=chance)
            parts = [(scenes(pool[0][o], chance), pool[1][o]) for o in (order[:TRAIN], order[TRAIN:])]
            learn, held = [(window(s, anywhere(len(s), chance, JITTER)), y) for s, y in parts]
            for name in HEADS:
                net = train(network(name, seed), learn, epochs, rate, seed)
                found[name].append(float(right(net, *held).float().mean()))
        print(f"{rate:<16g}" + "".join(f"{100 * np.mean(found[name]):16.1f}" for name in HEADS), flush=True)


# ------------------------------------------------------------------------------------------------- numbers to tables


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of Student's 95 % interval of it; infinite for one value."""
    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5 if n > 1 else np.inf
    return float(np.mean(values)), float(half)


def shown(values: Sequence[float], signed: bool = False) -> str:
    """Percent, ± the 95 % interval."""
    mean, half = (100 * v for v in interval(values))
    return f"{mean:{'+' if signed else ''}.1f} ± {half:.1f}".replace("-", "−")


def measures(runs: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """For each measure and head, one number a seed; maps by CAM where there is a GAP head, by Grad-CAM elsewhere."""
    found: dict[str, dict[str, list[float]]] = {}
    for head in HEADS:
        cam = f"{head}, CAM" if "GAP" in head else f"{head}, Grad-CAM"
        per = {
            "train": [r["train"][head] for r in runs],
            "test": [r["test"][head] for r in runs],
            "gap": [r["train"][head] - r["test"][head] for r in runs],
            "moved 6 px": [r["shift"][head][SHIFTS.index(6)] for r in runs],
            "moved 12 px": [r["shift"][head][SHIFTS.index(12)] for r in runs],
            "share in box": [r["share"][cam] for r in runs],
            "peak in box": [r["pointing"][cam] for r in runs],
        }
        for measure, values in per.items():
            found.setdefault(measure, {})[head] = values
    return found


def rows(cells: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|---" * len(cells[0]) + "|", *lines[1:]])


def tables(runs: list[dict[str, Any]], parameters: dict[str, int]) -> str:
    """The numbers as Markdown: by head, paired differences, the maps, and Network in Network's own beside."""
    found = measures(runs)
    head = [["head", "parameters", *found]]
    head += [[n, f"{parameters[n]:,}", *(shown(found[m][n]) for m in found)] for n in HEADS]
    pairs = [("GAP + linear", "FC"), ("GAP + linear", "FC + dropout"), ("1×1 conv + GAP", "GAP + linear")]
    less = [["paired difference", *found]]
    for a, b in pairs:
        apart = {m: np.subtract(found[m][a], found[m][b]).tolist() for m in found}
        less.append([f"{a} − {b}", *(shown(apart[m], signed=True) for m in found)])
    columns = ("share", "pointing", "share, all", "pointing, all")
    where = [["map", "share in box", "peak in box", "share, all pictures", "peak, all pictures"]]
    where += [[n, *(shown([r[c][n] for r in runs]) for c in columns)] for n in runs[0]["share"]]
    paper = [["test error in %, as published", *list(HEADS)[:2], "GAP"]]
    paper += [[name, *(f"{error:.2f}" for error in errors)] for name, errors in NIN.items()]
    share = shown([r["answered"] for r in runs])
    note = (
        f"Pictures that all four heads answer right, on which the first two columns rest: {share} % of {MAPS} a seed."
    )
    return "\n\n".join([rows(head), rows(less), rows(where), note, rows(paper)]) + "\n"


# ---------------------------------------------------------------------------------------------------------- pictures

COLOURS = dict(zip(HEADS, ("#b2182b", "#ef8a62", "#2166ac", "#67a9cf"), strict=True))


def plots(runs: list[dict[str, Any]], out: Path) -> None:
    """Accuracy over shift, and the generalisation gap, each with its 95 % interval."""
    from matplotlib.figure import Figure

    curve = Figure((6, 3.6), layout="constrained")
    axes = curve.subplots()
    for name, colour in COLOURS.items():
        points = [interval([r["shift"][name][i] for r in runs]) for i in range(len(SHIFTS))]
        mean, half = 100 * np.array(points).T
        axes.plot(SHIFTS, mean, "o-", color=colour, label=name, markersize=4)
        axes.fill_between(SHIFTS, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
    axes.axvspan(0, JITTER, color="0.9", zorder=0)
    axes.axhline(10, color="0.5", linestyle=":")
    axes.set(xlabel="digit moved by so many pixels (grey: as in training)", ylabel="test accuracy, %", ylim=(0, 100))
    axes.legend(frameon=False)
    curve.savefig(out / "gap-vs-fc-shift.png", dpi=90)
    bars = Figure((6, 2.6), layout="constrained")
    axes = bars.subplots()
    mean, half = 100 * np.array([interval(v) for v in measures(runs)["gap"].values()]).T
    axes.barh(list(HEADS), mean, xerr=half, color=list(COLOURS.values()), capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy in training − accuracy in test, percentage points")
    bars.savefig(out / "gap-vs-fc-gap.png", dpi=90)


def sheet(kept: dict[str, Any], count: int = 5) -> Any:
    """The first test pictures, those that every head names right before others, with each head's maps and the box."""
    chosen = (~kept["answered"]).int().argsort(stable=True)[:count].tolist()
    grey = [(255 * kept["x"][i, 0].clamp(0, 1)).byte().numpy() for i in chosen]
    pictures = [view.heatmap(g / 255, colours="gray").resize((160, 160), 0) for g in grey]
    cells = [[framed(p, kept["shift"][i]) for p, i in zip(pictures, chosen, strict=True)]]
    for heat in kept["heat"].values():
        large = nn.functional.interpolate(heat[chosen][:, None], (160, 160), mode="nearest")[:, 0].numpy()
        laid = [view.overlay(p, h) for p, h in zip(pictures, large, strict=True)]
        cells.append([framed(p, kept["shift"][i]) for p, i in zip(laid, chosen, strict=True)])
    names = ["picture", *(f"{head}, {title}".replace(" + ", "+") for head, title in kept["heat"])]
    return view.montage(cells, row_labels=names, side=160)


def framed(picture: Any, shift: Tensor) -> Any:
    from PIL import ImageDraw

    zoom, (top, left) = picture.width / SIDE, (ROOM + shift).tolist()
    corners = [zoom * v for v in (left, top, left + DIGIT, top + DIGIT)]
    ImageDraw.Draw(picture).rectangle(corners, outline=(0, 255, 0), width=2)
    return picture


# --------------------------------------------------------------------------------------------------------------- all


def asked() -> argparse.Namespace:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("out", nargs="?", default="out/gap-vs-fc", help="folder for the table, the numbers and the plots")
    ask.add_argument("--seeds", type=int, default=5, help="training sets, each with its own start (default 5)")
    ask.add_argument("--epochs", type=int, default=15, help="passes over the training set (default 15)")
    ask.add_argument("--tune", action="store_true", help="compare learning rates instead")
    return ask.parse_args()


def main(place: str = "out/gap-vs-fc", seeds: int = 5, epochs: int = 15) -> None:
    out = Path(place)
    out.mkdir(parents=True, exist_ok=True)
    pool, test = digits()
    runs, kept, start = [], {}, time.monotonic()
    for seed in range(seeds):
        numbers, drawn = one_seed(pool, test, epochs, seed)
        runs.append(numbers)
        kept = kept or drawn
        told = "  ".join(f"{name} {value:.1%}" for name, value in numbers["test"].items())
        print(f"seed {seed}: {told}  ({time.monotonic() - start:.0f} s)", flush=True)
    parameters = {name: sum(p.numel() for p in net.parameters()) for name, net in kept["nets"].items()}
    text = tables(runs, parameters)
    (out / "table.md").write_text(text, encoding="utf-8")
    (out / "numbers.json").write_text(json.dumps({"parameters": parameters, "runs": runs}, indent=1), encoding="utf-8")
    plots(runs, out)
    sheet(kept).quantize(255, method=1, dither=0).save(out / "gap-vs-fc-maps.png", optimize=True)
    print(f"\n{text}\nwritten: {out}/table.md, numbers.json and three plots")


if __name__ == "__main__":
    choice = asked()
    matplotlib.use("agg")
    if choice.tune:
        tune(digits()[0], choice.epochs)
    else:
        main(choice.out, choice.seeds, choice.epochs)
