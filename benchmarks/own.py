"""What our own promises cost: a thousand classes, all methods, the survey, threads, imports.

    PYTHONPATH=src python benchmarks/own.py --out benchmarks/results/own.md

Needs torchvision (a stand-in for its compiled operators may be named in CAMLUCIDA_TORCHVISION_SHIM).
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from common import in_forwards, interleaved
from versus import arm, build

import camlucida as cl
from camlucida.core import layers
from camlucida.core.capture import Inputs

METHODS = ["gradcam", "gradcampp", "hirescam", "xgradcam", "layercam", "elementwise"]


def forwards(net: nn.Module, batch: int, rounds: int) -> dict[str, tuple[float, float, float]]:
    x = torch.randn(batch, 3, 224, 224)
    inputs = Inputs((x,))

    def forward() -> object:
        with torch.inference_mode():
            return net(x)

    runs = {
        "forward": forward,
        "one class, layer named": lambda: cl.explain(net, x, layer="layer4"),
        "one class, layer found (survey remembered)": lambda: cl.explain(net, x),
        "the survey, once a model and input shape": lambda: layers.survey(net, inputs, again=True, complete=False),
        "CAM": lambda: cl.explain(net, x, layer="layer4", method="cam"),
        "10 classes by 6 methods": lambda: cl.sweep(net, x, targets=range(10), methods=METHODS, layers=["layer4"]),
        "1,000 classes, Grad-CAM": lambda: cl.sweep(net, x, targets=range(1000), layers=["layer4"]),
        "1,000 classes, Grad-CAM++": lambda: cl.sweep(
            net, x, targets=range(1000), methods=["gradcampp"], layers=["layer4"]
        ),
        "10 classes at layer3 (autograd)": lambda: cl.sweep(net, x, targets=range(10), layers=["layer3"]),
        "layer2, layer3 and layer4 at once": lambda: cl.sweep(net, x, layers=["layer2", "layer3", "layer4"]),
    }
    return in_forwards(interleaved(runs, rounds, warm=1))


def threads(count: int, pictures: int) -> str:
    """Many threads on one ResNet-18: every bit as one thread alone gets it."""
    torch.set_num_threads(1)
    net, inputs = build("resnet18"), [torch.randn(1, 3, 160, 160) for _ in range(pictures)]
    jobs = [(i, layer) for i in range(pictures) for layer in ("layer4", "layer3")]
    truth = {job: cl.explain(net, inputs[job[0]], layer=job[1], target=job[0]).map for job in jobs}
    wrong: list[object] = []

    def work(start: int) -> None:
        for turn in range(len(jobs)):
            i, layer = jobs[(start + turn) % len(jobs)]
            try:
                if not torch.equal(cl.explain(net, inputs[i], layer=layer, target=i).map, truth[i, layer]):
                    wrong.append((i, layer))
            except Exception as problem:
                wrong.append(problem)

    crew = [threading.Thread(target=work, args=(3 * n,)) for n in range(count)]
    begin = time.perf_counter()
    for one in crew:
        one.start()
    for one in crew:
        one.join()
    done, took = count * len(jobs), time.perf_counter() - begin
    return f"{done} maps in {count} threads: {len(wrong)} wrong bits or errors, {done / took:.0f}/s"


def seconds(*call: str, rounds: int = 7) -> float:
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def imports() -> list[str]:
    python = sys.executable
    plain, torch_, ours = (
        seconds(python, "-c", code) for code in ("pass", "import torch", "import camlucida; camlucida.explain")
    )
    shell = seconds(python, "-m", "camlucida.cli.main", "--help")
    return [
        f"`import torch` {torch_ - plain:.2f} s; `import camlucida` with `explain` loaded {ours - plain:.2f} s: "
        f"{(ours - plain) / (torch_ - plain):.2f} × (over an empty interpreter, {plain:.2f} s)",
        f"`camlucida --help` {shell:.2f} s, interpreter included",
    ]


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--rounds", type=int, default=9)
    ask.add_argument("--out", type=Path)
    asked = ask.parse_args()
    arm()
    lines = ["# What our own promises cost", ""]
    lines += [f"ResNet-50, random weights, torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores;"]
    lines += ["not measured on a GPU. Medians of interleaved rounds, in plain forward passes of the same batch.", ""]
    lines += ["| what | batch 1 | batch 8 |", "|---|---|---|"]
    net = build("resnet50")
    one, eight = forwards(net, 1, asked.rounds), forwards(net, 8, max(3, asked.rounds // 3))
    lines += [f"| {what} | {one[what][0]:.2f} | {eight[what][0]:.2f} |" for what in one]
    lines += ["", "ResNet-18, 160 px: " + threads(16, 12), "", *(f"- {line}" for line in imports())]
    print("\n".join(lines))
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
