"""What can be taken off Score-CAM without changing its numbers? Each idea by itself, and what it gives.

    PYTHONPATH=src python benchmarks/scorecam.py --out benchmarks/results/scorecam.md --material FOLDER

Needs the environment of versus.py. ResNet-18, random weights, 224 px: the time of one masked picture in the batches
that Score-CAM sends through the net, over the plain forward pass of one picture, medians of interleaved rounds. Two
ideas skip work (a channel that is constant over the places has no mask), which needs trained weights to be counted on:
FOLDER holds ``weights/models.py``, its weights, and ``pictures/*.jpg``.

``--whole`` adds Score-CAM itself, all 512 channels at ``layer4``: ours, ours without the faster body of the model, and
the peers, in turn; some minutes. ``--processor`` counts the processor's time on one thread, for a machine that others
use.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import common
from common import Run, interleaved
from versus import arm, build, facts

from camlucida.core import scorer
from camlucida.maps import resize
from camlucida.methods import _masks as masks

BATCHES = (1, 2, 6, 16, 32)
LAST = {
    "squeezenet1_1": "features.12",
    "mobilenet_v2": "features",
    "resnet20_cifar10": "layer3",
    "resnet56_cifar10": "layer3",
}


def folded(net: nn.Module) -> nn.Module:
    """A copy whose BatchNorms are part of the convolutions before them."""
    from torch.fx.experimental.optimization import fuse

    return fuse(copy.deepcopy(net))


def through(net: nn.Module, xs: Tensor, mode: type = torch.inference_mode) -> Run:
    def run() -> Tensor:
        with mode():
            return net(xs)

    return run


def ideas(net: nn.Module, batch: int) -> tuple[dict[str, Run], dict[str, int]]:
    """Runs, and how many pictures each of them answers for."""
    torch.manual_seed(0)
    x, last = torch.randn(1, 3, 224, 224), torch.channels_last
    many = torch.randn(batch, 3, 224, 224)
    maps = torch.rand(batch, 7, 7)
    turned, fused = copy.deepcopy(net).to(memory_format=last), folded(net)
    both = folded(net).to(memory_format=last)
    runs = {"forward of one picture": through(net, x)}
    runs |= {f"batches of {b}": through(net, torch.randn(b, 3, 224, 224)) for b in BATCHES if b > 1}
    extra = {
        f"batches of {batch}, recording gradients": lambda: net(many),
        f"batches of {batch}, no_grad": through(net, many, torch.no_grad),
        f"batches of {batch}, BatchNorm folded": through(fused, many),
        f"batches of {batch}, channels last": through(turned, many.to(memory_format=last)),
        f"batches of {batch}, channels last and BatchNorm folded": through(both, many.to(memory_format=last)),
        f"masks alone, {batch} at a time": lambda: masks.show(x[0], masks.unit(resize(maps, (224, 224))), 0.0),
    }
    count = {name: batch for name in extra} | {f"batches of {b}": b for b in BATCHES} | {"forward of one picture": 1}
    return runs | extra, count


def off(net: nn.Module, batch: int) -> dict[str, float]:
    """How far the scores of the changed copies are off, as a share of the largest."""
    xs, last = torch.randn(batch, 3, 224, 224), torch.channels_last
    with torch.inference_mode():
        truth = net(xs)
        found = {
            "BatchNorm folded": folded(net)(xs),
            "channels last": copy.deepcopy(net).to(memory_format=last)(xs.to(memory_format=last)),
        }
    return {name: float((y - truth).abs().max() / truth.abs().max()) for name, y in found.items()}


def whole(net: nn.Module) -> dict[str, float]:
    """Forwards of Score-CAM itself: ours as it is, ours by the plain model, the peers'."""
    from methods import forward_of, grad_cam, ours, torchcam

    x = torch.randn(1, 3, 224, 224)
    mine, forward = ours(net, x, "resnet18", "scorecam"), forward_of(net, x)

    def plain() -> object:
        was, scorer.WORTH = scorer.WORTH, 10**9
        try:
            return mine()
        finally:
            scorer.WORTH = was

    runs = {
        "camlucida": mine,
        "grad-cam": grad_cam(net, x, "resnet18", "ScoreCAM"),
        "torchcam": torchcam(net, x, "resnet18", "ScoreCAM"),
        "camlucida by the plain model": plain,
    }
    found = {}
    for who, run in runs.items():
        units = [timed(forward) for _ in range(5)]
        took = timed(run)
        found[who] = took / statistics.median([*units, *(timed(forward) for _ in range(5))])
    return found


def timed(run: Run) -> float:
    start = common.CLOCK["timer"]()
    run()
    return common.CLOCK["timer"]() - start


def flat_channels(folder: Path) -> list[str]:
    """How many channels of the last features are constant over the places, by net: mean over the pictures."""
    sys.path.insert(0, str(folder / "weights"))
    import models

    lines = []
    for name, layer in LAST.items():
        net, shares, width = models.load(name), [], 0
        small = name.endswith("cifar10")
        pictures = sorted((folder / "pictures").glob("cifar10_test/*.jpg" if small else "*.jpg"))[:100]
        kept: list[Tensor] = []
        handle = net.get_submodule(layer).register_forward_hook(lambda _m, _i, made: kept.append(made.detach()))  # noqa: B023
        for picture in pictures:
            with Image.open(picture) as photo, torch.inference_mode():
                net(models.preprocess(photo, name))
            flat = kept.pop()[0].flatten(1)
            width = len(flat)
            shares.append(float((flat.amax(1) == flat.amin(1)).sum()) / width)
        handle.remove()
        lines.append(f"| {name} `{layer}` | {width} | {len(pictures)} | {100 * statistics.mean(shares):.1f} % |")
    return lines


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--rounds", type=int, default=9)
    ask.add_argument("--batch", type=int, default=6)
    ask.add_argument("--material", type=Path)
    ask.add_argument("--whole", action="store_true", help="Score-CAM itself, and the peers'")
    ask.add_argument("--processor", action="store_true", help="the processor's time, one thread: on a busy machine")
    ask.add_argument("--out", type=Path)
    asked = ask.parse_args()
    arm()
    if asked.processor:
        torch.set_num_threads(1)
        common.CLOCK["timer"] = time.process_time
    net = build("resnet18")
    runs, count = ideas(net, asked.batch)
    took = interleaved(runs, asked.rounds, warm=1)
    table = {}
    for name, times in took.items():
        ratios = [t / count[name] / one for t, one in zip(times, took["forward of one picture"], strict=True)]
        table[name] = statistics.median(ratios)
    told = ["Times are the processor's, on one thread.", ""] if asked.processor else []
    lines = [
        "# What can be taken off Score-CAM?",
        "",
        facts()[0],
        "",
        *told,
        "| one masked picture | forwards |",
        "|---|---|",
    ]
    lines += [f"| {name} | {value:.3f} |" for name, value in table.items()]
    lines += ["", *(f"Scores with {name}: {value:.0e} off." for name, value in off(net, asked.batch).items())]
    if asked.whole:
        lines += ["", "| Score-CAM, 512 channels | forwards |", "|---|---|"]
        lines += [f"| {who} | {value:.0f} |" for who, value in whole(net).items()]
    if asked.material:
        lines += ["", "| trained net | channels | pictures | constant over the places |", "|---|---|---|---|"]
        lines += flat_channels(asked.material)
    print("\n".join(lines))
    if asked.out:
        asked.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
        asked.out.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
