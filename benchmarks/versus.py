"""Grad-CAM side by side with the peers, in one run: time in forwards, memory over the model, equal maps.

Needs an environment of its own with the peers in it (they are never dependencies of camlucida):

    pip install torch==2.13.0 torchvision==0.28.0 timm grad-cam torchcam captum
    PYTHONPATH=src python benchmarks/versus.py --out benchmarks/results/versus.md

Where torchvision's compiled operators do not fit torch, name a stand-in in CAMLUCIDA_TORCHVISION_SHIM.
Weights are random: time and memory do not depend on them.
"""

import argparse
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from common import in_forwards, interleaved, peak_bytes

LAYERS = {"resnet50": "layer4", "vgg16": "features.29", "vit_b_16": "encoder.layers.encoder_layer_11.ln_1"}
GIB = 2**30


def arm() -> None:
    shim = os.environ.get("CAMLUCIDA_TORCHVISION_SHIM")
    if shim:
        spec = importlib.util.spec_from_file_location("torchvision_shim", shim)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.hook()


def build(name: str) -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    how = {"init_weights": False} if name == "vgg16" else {}
    net = getattr(torchvision.models, name)(weights=None, **how).eval()
    if name == "vit_b_16":
        nn.init.normal_(net.heads.head.weight, std=0.02)  # it starts at zero
    return net


def grid(tokens: Tensor) -> Tensor:
    """What every peer must be told by hand for a vision transformer."""
    return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, 14, 14)


def contestants(name: str, net: nn.Module, x: Tensor) -> dict[str, Callable[[], Any]]:
    """Each library's Grad-CAM of class 7, as its own documentation writes it; raw maps where it offers them."""
    layer, index = net.get_submodule(LAYERS[name]), 7
    tokens = name.startswith("vit")

    def forward() -> Tensor:
        with torch.inference_mode():
            return net(x)

    def camlucida() -> Tensor:
        import camlucida as cl

        return cl.explain(net, x, target=index, layer=LAYERS[name]).map

    def captum() -> Tensor:
        from captum.attr import LayerGradCam

        return LayerGradCam(net, layer).attribute(x, target=index)

    def torchcam() -> Tensor:
        from torchcam.methods import GradCAM

        how = {"reshape_transform": grid} if tokens else {}
        with GradCAM(net, LAYERS[name], **how) as extractor:
            return extractor([index] * len(x), net(x), normalized=False)[0]

    def grad_cam() -> Any:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        with GradCAM(net, [layer], reshape_transform=grid if tokens else None) as extractor:
            return extractor(x, [ClassifierOutputTarget(index)] * len(x))

    runs = {"forward": forward, "camlucida": camlucida, "captum": captum, "torchcam": torchcam, "grad-cam": grad_cam}
    if tokens:
        runs.pop("captum")  # sums over tokens instead of channels: no map of places
    return runs


def agreement(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Largest difference of each peer's rectified, scaled map from ours (grad-cam's are resized: left out)."""
    ours = runs["camlucida"]().relu()
    ours = ours / ours.flatten(1).amax(1).clamp(min=1e-12)[:, None, None]
    found = {}
    for name in ("captum", "torchcam"):
        if name in runs:
            theirs = runs[name]().detach().relu().reshape(ours.shape)
            theirs = theirs / theirs.flatten(1).amax(1).clamp(min=1e-12)[:, None, None]
            found[name] = float((ours - theirs).abs().max())
    return found


def memory(name: str, batch: int, who: str) -> float:
    """Peak over the model, GiB: the median of three processes of its own (the allocator wavers by some 10 MB)."""
    call = [sys.executable, __file__, "--memory", name, str(batch), who]
    done = [subprocess.run(call, capture_output=True, text=True, check=True) for _ in range(3)]
    return statistics.median(float(d.stdout.split()[-1]) for d in done) / GIB


def measure_memory(name: str, batch: int, who: str) -> None:
    net, x = build(name), torch.randn(batch, 3, 224, 224)
    runs = contestants(name, net, x)
    small = contestants(name, net, x[:1])
    small["forward"]()  # code and thread pools are loaded before the count begins
    small[who]()
    print(peak_bytes(runs[who]))


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--models", nargs="+", default=list(LAYERS))
    ask.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    ask.add_argument("--rounds", type=int, default=9)
    ask.add_argument("--out", type=Path)
    ask.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    asked = ask.parse_args()
    arm()
    if asked.memory:
        return measure_memory(asked.memory[0], int(asked.memory[1]), asked.memory[2])
    lines = ["# Grad-CAM beside the peers", "", *facts(), ""]
    lines += ["| model | batch | who | forwards (middle half) | ms | memory over the model, GiB | map differs |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name in asked.models:
        for batch in asked.batches:
            lines += rows(name, batch, asked.rounds)
            print("\n".join(lines[-6:]), flush=True)
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return None


def facts() -> list[str]:
    peers = ", ".join(f"{p} {version(p)}" for p in ("torch", "torchvision", "captum", "torchcam", "grad-cam"))
    cpu = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return [
        f"{peers}; {cpu}; not measured on a GPU. Interleaved rounds, medians of the ratio to the plain forward pass",
        "(inference mode) of the same round. The layer is named to all of them. Memory: peak resident size of one call",
        "over what was resident before, each in processes of its own, the median of three.",
    ]


def rows(name: str, batch: int, rounds: int) -> list[str]:
    net, x = build(name), torch.randn(batch, 3, 224, 224)
    runs = contestants(name, net, x)
    differs = agreement(runs)
    took = interleaved(runs, max(3, rounds if batch == 1 else rounds // 2))
    table = in_forwards(took)
    del net, x
    lines = []
    for who, (median, low, high) in table.items():
        ms = sorted(took[who])[len(took[who]) // 2] * 1000
        gib = memory(name, batch, who)
        apart = f"{differs[who]:.0e}" if who in differs else ""
        spread = f"{median:.2f} ({low:.2f}–{high:.2f})"
        lines.append(f"| {name} | {batch} | {who} | {spread} | {ms:.0f} | {gib:.2f} | {apart} |")
    return lines


if __name__ == "__main__":
    main()
