"""What every method costs, in forwards and in memory, beside the same-named methods of the peers, in one run.

    PYTHONPATH=src python benchmarks/methods.py --out benchmarks/results/methods.md
    PYTHONPATH=src python benchmarks/methods.py --models resnet18 --seconds 2     # a look
    PYTHONPATH=src python benchmarks/methods.py --out … --models vit_b_16 --minutes 5   # a piece; again for the next

Needs the environment of versus.py. Batch of 1, class 7, the layer named to all. A method's round is: forward, ours,
forward, peer, forward, …; its unit is the median forward of that round. Slow methods run with fewer samples, steps,
windows or channels, as the table says; ``at default`` is what that comes to with as many as there are by default.

With ``--out`` every row is written as soon as it is there, and what is there is not measured again: the work can be
done in pieces of ``--minutes`` for each model, and goes on after an end of any kind. ``--fresh`` begins anew. On a
machine that others use, ``--processor`` counts the processor's time on one thread, which waiting does not lengthen.

Memory is read in processes of one thread, forked after the net was made and explained once: peak resident size over
what was resident before. After ``LIMIT`` seconds a method is in its loop, and what it has reached is taken.
"""

import argparse
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from common import CLOCK, quiet, resident, resident_at_most
from versus import LAYERS, arm, build, facts, grid

import camlucida as cl
from camlucida.registry import Method, get

PLACES = {"resnet18": "layer4", **LAYERS}
INDEX, LIMIT, MIB = 7, 4.0, 2**20
FEWER = {  # the options that a slow method runs with, and how many times more it does by default
    "rise": ("samples=20", 4000 / 20),
    "opticam": ("steps=2", 100 / 2),
    "occlusion": ("window=56:stride=56", 15**2 / 4**2),
    "integratedgradients": ("steps=2", 32 / 2),
    "smoothgrad": ("samples=2", 25 / 2),
    "smoothgradcampp": ("samples=2", 16 / 2),
    "captumgradientshap": ("samples=2", 16 / 2),
    "groupcam": ("groups=4", 32 / 4),
}
WIDE = {"resnet18": 512, "resnet50": 2048, "vgg16": 512, "vit_b_16": 768}
FEW = 32  # channels of Score-CAM, where all of them take minutes
OWN = "a score of the user's own: no closed form"
Run = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One method, and all who have it; ``times`` is how many times more there is to do by default."""

    method: str
    note: str
    times: float
    runs: dict[str, Run]

    @property
    def key(self) -> str:
        return f"{self.method} {self.note}"


def ours(net: nn.Module, x: Tensor, name: str, label: str, target: Any = INDEX) -> Run:
    at = PLACES[name] if get(label).at == "layer" else None
    return lambda: cl.explain(net, x, target=target, method=label, layer=at)


def own(output: Tensor) -> Tensor:
    """A score that nothing is known of."""
    return output[:, INDEX] * 1.0


def rows(name: str, net: nn.Module, x: Tensor, slow: bool = False) -> list[Row]:
    """Every method that this net can be asked for; ``slow``: with those that pass a picture for each channel."""
    made = []
    for m in cl.list_methods().values():
        if skipped(name, m):
            continue
        few, times = FEWER.get(m.name, ("", 1.0))
        if m.name == "scorecam" and not slow:
            label, few, times = f"fasterscorecam:channels={FEW}", f"{FEW} of {WIDE[name]} channels", WIDE[name] / FEW
            made.append(Row("scorecam", few, times, {"camlucida": ours(net, x, name, label)}))
            continue
        label = f"{m.name}:{few}" if few else m.name
        others = {} if few else peers(name, net, x, slow).get(m.name, {})
        made.append(Row(m.name, few.replace(":", " "), times, {"camlucida": ours(net, x, name, label), **others}))
    if name != "vit_b_16":
        made.append(Row("ablationcam", OWN, 1.0, {"camlucida": ours(net, x, name, "ablationcam", own)}))
    return made


def skipped(name: str, m: Method) -> bool:
    """CAM has no head to read on VGG-16 and ViT-B/16, attention is the ViT's alone; captum's LRP knows neither."""
    vit = name == "vit_b_16"
    if m.needs == "head":
        return name not in ("resnet18", "resnet50")
    if m.needs == "attention":
        return not vit
    return vit and m.name in NO_RELU


# Rectifiers the ViT has none, and Captum's LRP no rule for its layers.
NO_RELU = ("guidedbackprop", "deconvnet", "guidedgradcam", "captumlrp", "captumdeeplift")


# ---------------------------------------------------------------------------------------------------------- the peers


def peers(name: str, net: nn.Module, x: Tensor, slow: bool) -> dict[str, dict[str, Run]]:
    """The same-named methods of the peers, as their documentation writes them."""
    vit = name == "vit_b_16"
    found: dict[str, dict[str, Run]] = {}
    for method, kind in _GRAD_CAM.items():
        if method in ("scorecam", "ablationcam") and not slow:
            continue
        found.setdefault(method, {})["grad-cam"] = grad_cam(net, x, name, kind)
    for method, kind in _TORCHCAM.items():
        if (method == "cam" and not name.startswith("resnet")) or (method == "scorecam" and not slow):
            continue
        found.setdefault(method, {})["torchcam"] = torchcam(net, x, name, kind)
    if vit:
        found["legrad"] = {"torchcam": legrad(net, x)}
        found.pop("fullgrad")
    for method, (kind, at_layer) in _CAPTUM.items():
        if not (vit and (at_layer or method in NO_RELU)):
            found.setdefault(method, {})["captum"] = captum(net, x, name, kind, at_layer)
    return found


_GRAD_CAM = {
    "gradcam": "GradCAM", "gradcampp": "GradCAMPlusPlus", "xgradcam": "XGradCAM", "layercam": "LayerCAM",
    "hirescam": "HiResCAM", "elementwise": "GradCAMElementWise", "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM", "segeigencam": "SegEigenCAM", "kpcacam": "KPCA_CAM", "fem": "FEM",
    "shapleycam": "ShapleyCAM", "fullgrad": "FullGrad", "ablationcam": "AblationCAM", "scorecam": "ScoreCAM",
}  # fmt: skip
_TORCHCAM = {
    "cam": "CAM", "gradcam": "GradCAM", "gradcampp": "GradCAMpp", "xgradcam": "XGradCAM", "layercam": "LayerCAM",
    "scorecam": "ScoreCAM",
}  # fmt: skip
_CAPTUM = {  # the class, and whether it works at a layer
    "gradcam": ("LayerGradCam", True), "gradient": ("Saliency", False), "gradientxinput": ("InputXGradient", False),
    "guidedbackprop": ("GuidedBackprop", False), "deconvnet": ("Deconvolution", False),
    "guidedgradcam": ("GuidedGradCam", True),
}  # fmt: skip


def grad_cam(net: nn.Module, x: Tensor, name: str, kind: str) -> Run:
    def run() -> Any:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        layers = [] if kind == "FullGrad" else [net.get_submodule(PLACES[name])]
        how = {"reshape_transform": grid} if name.startswith("vit") else {}
        with quiet(), getattr(pytorch_grad_cam, kind)(net, layers, **how) as extractor:
            return extractor(x, [ClassifierOutputTarget(INDEX)])

    return run


def torchcam(net: nn.Module, x: Tensor, name: str, kind: str) -> Run:
    def run() -> Any:
        import torchcam.methods

        how = {"reshape_transform": grid} if name.startswith("vit") else {}
        with quiet(), getattr(torchcam.methods, kind)(net, PLACES[name], **how) as extractor:
            return extractor(INDEX, net(x), normalized=False)[0]

    return run


def legrad(net: nn.Module, x: Tensor) -> Run:
    def run() -> Any:
        from torchcam.methods import LeGrad

        with LeGrad(net, list(net.encoder.layers)) as extractor:
            net(x)
            return extractor(INDEX, normalized=False)[0]

    return run


def captum(net: nn.Module, x: Tensor, name: str, kind: str, at_layer: bool) -> Run:
    def run() -> Any:
        import captum.attr

        where = [net.get_submodule(PLACES[name])] if at_layer else []
        with quiet():
            return getattr(captum.attr, kind)(net, *where).attribute(x.clone().requires_grad_(), target=INDEX)

    return run


# ------------------------------------------------------------------------------------------------------------- time


def timed(run: Run) -> float:
    timer = CLOCK["timer"]
    start = timer()
    run()
    return timer() - start


def cost(row: Row, forward: Run, budget: float) -> dict[str, tuple[float, float, int]]:
    """Forwards, seconds and rounds of everybody: medians of as many rounds as fit into the budget, at most 9.

    The first round warms; where it takes all of the budget, it is the only one.
    """
    start, found = time.perf_counter(), [one_round(row, forward)]
    took = time.perf_counter() - start
    if took < budget / 2:
        found = [one_round(row, forward) for _ in range(min(9, int(budget / took)))]
    return {
        who: (statistics.median(f[who][0] for f in found), statistics.median(f[who][1] for f in found), len(found))
        for who in row.runs
    }


def one_round(row: Row, forward: Run) -> dict[str, tuple[float, float]]:
    """Forwards and seconds of everybody, by the median forward pass between them."""
    units, seconds = [timed(forward)], {}
    for who, run in row.runs.items():
        try:
            seconds[who] = timed(run)
        except Exception as fault:  # of a peer's: its own code, on a net that it does not bear
            if who == "camlucida":
                raise
            print(f"fails: {who} {row.method}: {' '.join(str(fault).split())[:150]}", file=sys.stderr)
            seconds[who] = float("nan")
        units.append(timed(forward))
    unit = statistics.median(units)
    return {who: (s / unit, s) for who, s in seconds.items()}


def forward_of(net: nn.Module, x: Tensor) -> Run:
    def forward() -> Tensor:
        with torch.inference_mode():
            return net(x)

    return forward


# ------------------------------------------------------------------------------------------------------------ memory


def memory(name: str, known: set[str]) -> Iterator[tuple[str, float]]:
    """MiB over the model, by row and who, each in a fork of its own; those that are not known yet."""
    torch.set_num_threads(1)  # without a pool of threads a process can be forked and go on
    with quiet():
        for library in ("captum.attr", "pytorch_grad_cam", "sklearn.decomposition", "torchcam.methods"):
            import_module(library)
    net, x = build(name), torch.randn(1, 3, 224, 224)
    forward = forward_of(net, x)
    forward()  # its code is loaded before the count begins
    ours(net, x, name, "gradcam")()  # and what is looked at once for each model and layer, is
    runs = {"forward": forward}
    runs |= {f"{row.key} {who}": run for row in rows(name, net, x) for who, run in row.runs.items()}
    yield from ((key, reached(run)) for key, run in runs.items() if key not in known)


def reached(run: Run) -> float:
    """Peak of one run in a fork, MiB; of its first `LIMIT` seconds where it takes longer. NaN where it fails."""
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(tell, f"{resident()}\n".encode())
            run()
            os.write(tell, f"{resident_at_most()}\n".encode())
        finally:
            os._exit(0)
    os.close(tell)
    with open(told, encoding="ascii") as words:
        before = int(words.readline())
        ready = select.select([words], [], [], LIMIT)[0]
        most = words.readline() if ready else str(resident_at_most(child))
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return (int(most) - before) / MIB if most else float("nan")


def measured(name: str, known: set[str], until: float) -> Iterator[tuple[str, float]]:
    """`memory` in a process that gives freed memory back at once, so that none is hidden in what it kept."""
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "OMP_NUM_THREADS": "1"}
    call, pipe = [sys.executable, __file__, "--memory", name], subprocess.PIPE
    with subprocess.Popen(call, stdin=pipe, stdout=pipe, text=True, env=env) as child:
        assert child.stdin is not None and child.stdout is not None
        json.dump(sorted(known), child.stdin)
        child.stdin.close()
        for words in child.stdout:
            yield tuple(json.loads(words))
            if time.monotonic() > until:
                child.kill()
                return


# ------------------------------------------------------------------------------------------------------------ the page


@dataclass
class Known:
    """What is measured already, and where it is written down."""

    out: Path | None
    sweep: float | None = None
    mib: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @staticmethod
    def read(out: Path | None, fresh: bool) -> "Known":
        """What an earlier call has left."""
        told = out.with_suffix(".json") if out else None
        if told is None or fresh or not told.exists():
            return Known(out)
        return Known(out, **json.loads(told.read_text(encoding="utf-8")))

    def has(self, name: str, row: Row) -> bool:
        own = {r["who"] for r in self.rows if (r["model"], r["method"], r["note"]) == (name, row.method, row.note)}
        return own >= row.runs.keys()

    def write(self) -> None:
        if self.out is None:
            return
        held = {"sweep": self.sweep, "mib": self.mib, "rows": self.rows, "notes": self.notes}
        texts = {self.out.with_suffix(".json"): json.dumps(held, indent=1) + "\n", self.out: page(self)}
        for path, text in texts.items():
            part = path.with_name(path.name + ".part")
            part.write_text(text, encoding="utf-8")
            part.replace(path)  # whole or not there, whenever it ends


def model(name: str, asked: argparse.Namespace, known: Known) -> bool:
    """Measure what is not known of one net, a record for each row and who; whether all of it is."""
    until = time.monotonic() + 60 * asked.minutes
    net, x = build(name), torch.randn(1, 3, 224, 224)
    forward = forward_of(net, x)
    for _ in range(3):
        forward()
    for row in [r for r in rows(name, net, x, asked.slow) if not known.has(name, r)]:
        if time.monotonic() > until:
            return False
        try:
            costs = cost(row, forward, asked.seconds)
        except cl.CamlucidaError as problem:  # such as a net that Captum does not bear
            print(f"left out: {name} {row.method}: {problem}", file=sys.stderr)
            continue
        known.rows = [r for r in known.rows if (r["model"], r["method"], r["note"]) != (name, row.method, row.note)]
        for who, (forwards, seconds, rounds) in costs.items():
            record = {"model": name, "method": row.method, "note": row.note, "who": who, "forwards": forwards}
            default = forwards if row.times == 1 else 1 + (forwards - 1) * row.times
            record |= {"default": default, "ms": seconds * 1000, "rounds": rounds}
            known.rows.append(record)
            print(line(record, known.mib.get(name, {})), flush=True)
        known.write()
    if not asked.time_only:
        mib = known.mib.setdefault(name, {})
        for key, most in measured(name, set(mib), until):
            mib[key] = most
            known.write()
    return asked.time_only or time.monotonic() <= until


def line(r: dict[str, Any], mib: dict[str, float]) -> str:
    if r["forwards"] != r["forwards"]:
        return f"| {r['model']} | `{r['method']}` | {r['note']} | {r['who']} | fails | | | | |"
    told = f"{r['forwards']:.2f}" if r["forwards"] < 20 else f"{r['forwards']:.0f}"
    whole = "" if r["default"] == r["forwards"] else f"{r['default']:.0f}"
    most = mib.get(f"{r['method']} {r['note']} {r['who']}", float("nan"))
    least = "" if most != most else f"{max(most, 0):.0f}"
    cells = (r["model"], f"`{r['method']}`", r["note"], r["who"], told, whole, f"{r['ms']:.0f}", r["rounds"], least)
    return f"| {' | '.join(map(str, cells))} |"


def swept(budget: float) -> float:
    """All gradient methods at layer4 of ResNet-50, ten classes each, from one forward pass: forwards."""
    net, x = build("resnet50"), torch.randn(1, 3, 224, 224)
    methods = [m.name for m in cl.list_methods().values() if m.needs == "gradient" and m.at == "layer"]
    run = {"sweep": lambda: cl.sweep(net, x, targets=range(10), methods=methods, layers=["layer4"])}
    (forwards, _, _) = cost(Row("sweep", "", 1.0, run), forward_of(net, x), budget)["sweep"]
    return forwards


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--models", nargs="*", default=list(PLACES))
    ask.add_argument("--seconds", type=float, default=4.0, help="time for all rounds of one method")
    ask.add_argument(
        "--minutes", type=float, default=float("inf"), help="for one model: then it ends, to be gone on with"
    )
    ask.add_argument("--slow", action="store_true", help="the peers' Score-CAM and Ablation-CAM, too: minutes each")
    ask.add_argument("--time-only", action="store_true", help="without memory")
    ask.add_argument("--processor", action="store_true", help="the processor's time, one thread: on a busy machine")
    ask.add_argument("--fresh", action="store_true", help="begin anew")
    ask.add_argument("--out", type=Path)
    ask.add_argument("--memory", help=argparse.SUPPRESS)
    asked = ask.parse_args()
    arm()
    if asked.memory:
        for pair in memory(asked.memory, set(json.load(sys.stdin))):
            print(json.dumps(pair), flush=True)
        return
    known = Known.read(asked.out, asked.fresh)
    if asked.processor:
        torch.set_num_threads(1)
        CLOCK["timer"] = time.process_time
        known.notes = [PROCESSOR]
    if known.sweep is None:
        known.sweep = swept(asked.seconds)
        known.write()
    print(f"sweep: {known.sweep:.2f}", flush=True)
    left = [name for name in asked.models if not model(name, asked, known)]
    print(f"to be gone on with: {', '.join(left)}" if left else "all of it is measured", flush=True)


PROCESSOR = "Times are the processor's, on one thread, for the machine was busy: ratios hold, waiting is left out."


def promises(found: list[dict[str, Any]], sweep: float | None) -> list[str]:
    """What was to be reached, and what is."""
    asked = [
        ("ablationcam", "", 1.1, "closed form"),
        ("ablationcam", OWN, 6.0, "without it"),
        ("eigencam", "", 1.1, ""),
    ]
    lines = []
    for method, note, most, told in asked:
        mine = [r for r in found if (r["method"], r["note"], r["who"]) == (method, note, "camlucida")]
        ours = {r["model"]: r["forwards"] for r in mine}
        gap = ("resnet18", "resnet50") if method == "ablationcam" else tuple(PLACES)
        said = ", ".join(f"{name} {ours[name]:.2f}" for name in gap if name in ours)
        lines.append(f"- {get(method).title}{', ' if told else ''}{told}: at most {most:g}; here {said}.")
    told = "not measured" if sweep is None else f"{sweep:.2f}"
    return [*lines, f"- All gradient methods, ten classes, one `sweep` on ResNet-50: at most 1.5; here {told}."]


def page(known: Known) -> str:
    plain = ", ".join(f"{name} {max(m['forward'], 0):.0f}" for name, m in known.mib.items() if "forward" in m)
    head = [
        "# What every method costs",
        "",
        facts()[0],
        "of the same round; batch of 1, 224 px, random weights, the layer named: "
        + ", ".join(f"{name} `{place}`" for name, place in PLACES.items())
        + ".",
        f"Memory: MiB of one call over the model, one thread; a plain forward pass: {plain or 'not measured'}.",
        "`at default`: what a run with fewer samples, steps, windows or channels comes to with as many as there are by",
        "default.",
        "",
        *(line for note in known.notes for line in (note, "")),
        "Forwards promised:",
        "",
        *promises(known.rows, known.sweep),
        "",
        "| model | method | with | who | forwards | at default | ms | rounds | MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(line(r, known.mib.get(r["model"], {})) for r in known.rows)]) + "\n"


if __name__ == "__main__":
    main()
