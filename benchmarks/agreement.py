"""Are our maps the peers' maps? Method by method, number by number, and why not where they are not.

    PYTHONPATH=src python benchmarks/agreement.py --out benchmarks/results/agreement.md --material FOLDER

Needs the environment of versus.py. Every case is one map of ours and one of a peer for the same net, picture, layer and
class, after the same post-processing. Where they differ, the reason is not only told: the peer's deviation is put into
the formula here, in our own words, and the result has to be the peer's map. A difference without a reason, or a reason
that does not give the peer's map, ends the run with an error. ``paper`` is how far our map is from the paper's formula
in loops and float64 (the slow twins of tests/), where there is one for the case.

FOLDER holds ``weights/models.py`` with ``load(name)``, trained weights and ``pictures/cat.jpg``; without it only random
nets are compared.
"""

import argparse
import copy
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
import deviations as d
from common import quiet
from deviations import Map, Setting
from versus import arm, facts

SAME, HOLDS = 2e-4, 2e-3  # of the largest value: equal maps, and a reason that gives the peer's map

# --------------------------------------------------------------------------------------------- the peers, as documented


def grad_cam(name: str) -> Callable[[Setting], Map]:
    """A class of grad-cam: rectified, min-max scaled, resized to the picture: nothing else is offered."""

    def run(s: Setting) -> Map:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        made = getattr(pytorch_grad_cam, name)(copy.deepcopy(s.net), [])
        made.__init__(made.model, [made.model.get_submodule(s.layer)])
        with made:
            return torch.from_numpy(made(s.x.clone(), [ClassifierOutputTarget(s.index)]))[0]

    return run


def torchcam(name: str, **how: Any) -> Callable[[Setting], Map]:
    """A class of torchcam with ``normalized=False``: at the layer's size, rectified by all but CAM."""

    def run(s: Setting) -> Map:
        import torchcam.methods

        with getattr(torchcam.methods, name)(s.net, s.layer, **how) as extractor:
            out = s.net(s.x)
            return extractor(s.index, out, normalized=False)[0][0].detach()

    return run


def captum(name: str, at_layer: bool = False, **how: Any) -> Callable[[Setting], Map]:
    """A class of captum: raw and signed, summed over channels; on a copy, for it wants rectifiers out of place."""

    def run(s: Setting) -> Map:
        import captum.attr

        net = copy.deepcopy(s.net)
        where = [net.get_submodule(s.layer)] if at_layer else []
        made = getattr(captum.attr, name)(net, *where)
        return made.attribute(s.x.clone().requires_grad_(), target=s.index, **how)[0].detach().sum(0)

    return run


def guided(s: Setting) -> Map:
    """grad-cam's guided backpropagation, ``h w c``, summed over channels."""
    from pytorch_grad_cam import GuidedBackpropReLUModel

    return torch.from_numpy(GuidedBackpropReLUModel(copy.deepcopy(s.net))(s.x.clone(), s.index)).sum(2)


# --------------------------------------------------------------------------------------- one post-processing for both


def rectified(_s: Setting, ours: Map) -> Map:
    return ours.relu()


def raw(_s: Setting, ours: Map) -> Map:
    return ours


def peak(_s: Setting, ours: Map) -> Map:
    """Rectified, and the largest value one: where the scale is no part of the method."""
    return ours.relu() / ours.max()


def scaled(s: Setting, ours: Map) -> Map:
    """What grad-cam does to every map, by its own function: rectify, min-max, resize, rectify, min-max."""
    from pytorch_grad_cam.utils.image import scale_cam_image

    size = (s.x.shape[-1], s.x.shape[-2])
    laid = scale_cam_image(np.maximum(ours[None].detach().numpy(), 0), size)
    return torch.from_numpy(scale_cam_image(np.maximum(laid, 0)))[0]


BROUGHT = {rectified: "relu", peak: "relu, largest is 1", raw: "raw", scaled: "relu, min-max, resized"}


def guided_nearest(s: Setting) -> Map:
    fine = captum("GuidedBackprop")(s)
    coarse = s.ours("gradcam").relu()
    return fine * F.interpolate(coarse[None, None], s.x.shape[2:], mode="nearest")[0, 0]


# ---------------------------------------------------------------------------------------------------------- the cases


@dataclass(frozen=True)
class Case:
    """One method of ours beside one of a peer's. ``instead`` is what the peer does, where the maps differ."""

    ours: str
    peer: str
    theirs: Callable[[Setting], Map]
    bring: Callable[[Setting, Map], Map]
    why: str = ""
    instead: Callable[[Setting], Any] | None = None
    paper: Callable[[Setting], Map] | None = None
    at_input: bool = False
    on: tuple[str, ...] = ("R3", "R4", "S")  # the nets it is compared on; R3 alone where a channel costs a forward
    wide: bool = False  # in double precision: where rounding along a path opens and shuts other rectifiers


REASONS = {
    "eps": "an absolute 1e-6 is added to the denominator, more than many squared gradients; 1/(2 + G ΣA) needs none",
    "undivided": "the division is done on a copy and lost: the weights are Σ G² relu(G)",
    "summed": "Σ(A G³) in the denominator, where the paper has G³ ΣA",
    "centred": "the mean place is taken away first and the sign left to chance; the paper does not centre",
    "centred too": "the mean place is taken away first; ours is not centred, as Eigen-CAM",
    "divided": "the drop is divided by the score, as in the paper (our relative=true), which turns over a negative one",
    "corners": "masks are enlarged with corners aligned, although the map is resized with centres aligned",
    "scaled first": "masks are brought to [0, 1] before they are enlarged; the paper enlarges first",
    "channels": "every channel is brought to [0, 1] by itself, a whole layer in the authors' code",
    "share": "the share of marked places times the activation, where the paper has the channel's mean times the mark",
    "offset": "kernel tanh(x·y/c + 1) of centred features, sign left to chance; ours measures the width, has no offset",
    "nearest": "Grad-CAM is enlarged to the nearest cell by default, the paper says bilinear",
}


def product(a: Any, g: Any) -> Any:
    return a * g


CASES = [
    Case("cam", "torchcam CAM", torchcam("CAM"), raw, on=("R4",)),
    Case("gradcam", "grad-cam GradCAM", grad_cam("GradCAM"), scaled, paper=d.twin("gradcam")),
    Case("gradcam", "torchcam GradCAM", torchcam("GradCAM"), rectified),
    Case("gradcam", "captum LayerGradCam", captum("LayerGradCam", True), raw),
    Case(
        "gradcampp",
        "grad-cam GradCAMPlusPlus",
        grad_cam("GradCAMPlusPlus"),
        scaled,
        "eps",
        d.gradcampp_eps,
        d.twin("gradcampp"),
    ),
    Case("gradcampp", "torchcam GradCAMpp", torchcam("GradCAMpp"), peak, "undivided", d.gradcampp_undivided),
    Case(
        "smoothgradcampp:samples=1:noise=0.0",
        "torchcam SmoothGradCAMpp, no noise",
        torchcam("SmoothGradCAMpp", num_samples=1, std=1e-12),
        rectified,
        "summed",
        d.smooth_summed,
        d.twin("gradcampp"),
    ),
    Case("xgradcam", "grad-cam XGradCAM", grad_cam("XGradCAM"), scaled, paper=d.twin("xgradcam")),
    Case("xgradcam", "torchcam XGradCAM", torchcam("XGradCAM"), rectified),
    Case("layercam", "grad-cam LayerCAM", grad_cam("LayerCAM"), scaled, paper=d.twin("layercam")),
    Case("layercam", "torchcam LayerCAM", torchcam("LayerCAM"), rectified),
    Case("hirescam", "grad-cam HiResCAM", grad_cam("HiResCAM"), scaled, paper=d.twin("hirescam")),
    Case(
        "elementwise",
        "grad-cam GradCAMElementWise",
        grad_cam("GradCAMElementWise"),
        scaled,
        paper=d.twin("elementwise"),
    ),
    Case("shapleycam", "grad-cam ShapleyCAM", grad_cam("ShapleyCAM"), scaled),
    Case(
        "eigencam",
        "grad-cam EigenCAM",
        grad_cam("EigenCAM"),
        scaled,
        "centred",
        d.centred(lambda a, _g: a),
        d.slow_eigen(lambda a, _g: a),
    ),
    Case(
        "eigengradcam",
        "grad-cam EigenGradCAM",
        grad_cam("EigenGradCAM"),
        scaled,
        "centred",
        d.centred(product),
        d.slow_eigen(product),
    ),
    Case(
        "segeigencam",
        "grad-cam SegEigenCAM",
        grad_cam("SegEigenCAM"),
        scaled,
        "centred too",
        d.centred(lambda a, g: a * g.abs(), True),
        d.slow_eigen(lambda a, g: a * g.abs()),
    ),
    Case("kpcacam:kernel=sigmoid", "grad-cam KPCA_CAM", grad_cam("KPCA_CAM"), scaled, "offset", d.kernel_offset),
    Case("fem", "grad-cam FEM", grad_cam("FEM"), scaled, "share", d.fem_share, d.slow_fem),
    Case(
        "ablationcam",
        "grad-cam AblationCAM",
        grad_cam("AblationCAM"),
        scaled,
        "divided",
        d.ablation_divided,
        d.slow_ablation,
        on=("R3",),
    ),
    Case("ablationcam:relative=true", "grad-cam AblationCAM", grad_cam("AblationCAM"), scaled, on=("R3",)),
    Case("scorecam", "grad-cam ScoreCAM", grad_cam("ScoreCAM"), scaled, "corners", d.scorecam_corners, d.slow_scorecam),
    Case(
        "scorecam",
        "torchcam ScoreCAM",
        torchcam("ScoreCAM"),
        rectified,
        "scaled first",
        d.scorecam_scaled_first,
        on=("R3",),
    ),
    Case(
        "fullgrad", "grad-cam FullGrad", grad_cam("FullGrad"), scaled, "channels", d.fullgrad_by_channel, at_input=True
    ),
    Case("gradient", "captum Saliency", lambda s: _strongest(s), raw, at_input=True),
    Case("gradientxinput", "captum InputXGradient", captum("InputXGradient"), raw, at_input=True),
    Case("guidedbackprop:signed=true", "captum GuidedBackprop", captum("GuidedBackprop"), raw, at_input=True),
    Case("guidedbackprop:signed=true", "grad-cam GuidedBackpropReLUModel", guided, raw, at_input=True),
    Case("deconvnet:signed=true", "captum Deconvolution", captum("Deconvolution"), raw, at_input=True),
    Case(
        "guidedgradcam:signed=true",
        "captum GuidedGradCam, bilinear",
        captum("GuidedGradCam", True, interpolate_mode="bilinear"),
        raw,
    ),
    Case(
        "guidedgradcam:signed=true",
        "captum GuidedGradCam",
        captum("GuidedGradCam", True),
        raw,
        "nearest",
        guided_nearest,
    ),
    Case(
        "integratedgradients",
        "captum IntegratedGradients, riemann_middle, 32 steps",
        captum("IntegratedGradients", n_steps=32, method="riemann_middle"),
        raw,
        at_input=True,
        wide=True,
    ),
    Case(
        "layerig:baseline=blank:gap=1.0",
        "captum LayerIntegratedGradients, riemann_middle, 32 steps",
        captum("LayerIntegratedGradients", True, n_steps=32, method="riemann_middle"),
        raw,
    ),
    Case(
        "smoothgrad:samples=1:noise=0.0:signed=true",
        "captum NoiseTunnel(Saliency), no noise",
        captum("Saliency", abs=False),
        raw,
        at_input=True,
    ),
    Case(
        "occlusion:window=16:stride=8",
        "captum Occlusion, 16 × 16 every 8",
        lambda s: captum("Occlusion", sliding_window_shapes=(3, 16, 16), strides=(3, 8, 8))(s) / 3,
        raw,
        at_input=True,
    ),
]


def _strongest(s: Setting) -> Map:
    from captum.attr import Saliency

    return Saliency(copy.deepcopy(s.net)).attribute(s.x.clone().requires_grad_(), target=s.index)[0].amax(0).detach()


# ----------------------------------------------------------------------------------------------------- the comparison


def apart(one: Map, two: Map) -> float:
    """The largest difference over the largest value of the second."""
    assert one.shape == two.shape, (one.shape, two.shape)
    return float((one.double() - two.double()).abs().max() / two.double().abs().max().clamp(min=1e-30))


def either(one: Map, two: Map) -> float:
    """As `apart`, whatever the sign of the first."""
    return min(apart(one, two), apart(-one, two))


def looked_at(case: Case, s: Setting) -> tuple[float, float, float]:
    """How far the maps differ, the reason's map from the peer's, and ours from the paper's; NaN: not asked."""
    s = s.wide() if case.wide else s
    ours, theirs = s.ours(case.ours, not case.at_input), case.theirs(s)
    theirs = peak(s, theirs) if case.bring is peak else theirs
    differs, residue, slow = apart(case.bring(s, ours), theirs), math.nan, math.nan
    if differs > SAME and case.instead is not None:
        made = case.instead(s)
        residue = min(apart(case.bring(s, m), theirs) for m in (made if isinstance(made, list) else [made]))
    if case.paper is not None:
        slow = (either if "eigen" in case.ours else apart)(ours, case.paper(s))
    return differs, residue, slow


Found = dict[str, tuple[float, float, float]]


def row(case: Case, found: Found) -> tuple[str, bool]:
    """A row of the table, and whether all of it is as it should be."""
    apart_by = {name: f[0] for name, f in found.items()}
    differ = [name for name, by in apart_by.items() if by > SAME]
    residues, slows = [found[name][1] for name in differ], [f[2] for f in found.values() if f[2] == f[2]]
    fine = all(r <= HOLDS for r in residues) and all(off <= HOLDS for off in slows)
    told = f"no: {case.why}, {max(residues):.0e}" if differ else "yes"
    told = told if fine else f"**{told}: not explained**"
    numbers = [f"{apart_by[name]:.0e}" if name in apart_by else "" for name in ("R3", "R4", "S")]
    paper = f"{max(slows):.0e}" if slows else ""
    return f"| {' | '.join([f'`{case.ours}`', case.peer, BROUGHT[case.bring], *numbers, paper, told])} |", fine


# ----------------------------------------------------------------------------------------------------------- the nets


def resnet(layer: str, index: int, name: str) -> Setting:
    """ResNet-18 with random weights, and BatchNorms that are no identity; rectifiers out of place for captum."""
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None).eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.3)
        elif isinstance(m, nn.ReLU):
            m.inplace = False
    biased = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    x = torch.randn(1, 3, 112, 112)
    return Setting(name, net, x, layer, index, f"ResNet-18, random weights and BatchNorm statistics, `{layer}`", biased)


def trained(folder: Path) -> Setting:
    """SqueezeNet 1.1 as trained on ImageNet, and the middle of a photo of a cat."""
    sys.path.insert(0, str(folder / "weights"))
    from models import load

    net = load("squeezenet1_1")
    with Image.open(folder / "pictures" / "cat.jpg") as photo:
        pixels = np.asarray(photo.convert("RGB").resize((168, 112)).crop((28, 0, 140, 112)), dtype=np.float32) / 255
    x = (torch.from_numpy(pixels).permute(2, 0, 1) - torch.tensor([[[0.485]], [[0.456]], [[0.406]]])) / 0.225
    biased = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    return Setting("S", net, x[None], "features.12", 285, "SqueezeNet 1.1, trained, a cat, `features.12`", biased)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--material", type=Path, help="the folder with trained weights and pictures")
    ask.add_argument("--only", nargs="*", help="only methods that begin so")
    ask.add_argument("--out", type=Path)
    asked = ask.parse_args()
    arm()
    settings = [resnet("layer3", 7, "R3"), resnet("layer4", 7, "R4")]
    settings += [trained(asked.material)] if asked.material else []
    known, bad = earlier(asked.out), 0
    for case in CASES:
        if asked.only and not case.ours.startswith(tuple(asked.only)):
            continue
        with quiet():
            found = {s.name: looked_at(case, s) for s in settings if s.name in case.on}
        known[f"{case.ours} | {case.peer}"] = found
        told, fine = row(case, found)
        print(told, flush=True)
        bad += not fine
    if asked.out:
        written(asked.out, settings, known)
    if bad:
        sys.exit(f"{bad} methods differ without a reason that holds")


def earlier(out: Path | None) -> dict[str, Found]:
    """The numbers of an earlier run, which this one replaces where it looks again."""
    file = out.with_suffix(".json") if out else None
    return json.loads(file.read_text(encoding="utf-8")) if file and file.exists() else {}


def written(out: Path, settings: list[Setting], known: dict[str, Found]) -> None:
    keys = [(case, f"{case.ours} | {case.peer}") for case in CASES]
    table = [row(case, known[key])[0] for case, key in keys if key in known]
    given = [name for name in REASONS if any(f"| no: {name}, " in told for told in table)]
    out.write_text("\n".join([*head(settings), *table, *foot(given)]) + "\n", encoding="utf-8")
    kept = {key: known[key] for _, key in keys if key in known}
    out.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def head(settings: list[Setting]) -> list[str]:
    told = [f"- **{s.name}**: {s.facts}, {s.x.shape[-1]} px, class {s.index}, score {s.read[2]:.2f}" for s in settings]
    return [
        "# Do the peers give the same maps?",
        "",
        facts()[0].split(";")[0] + ".",
        "",
        *told,
        "",
        "Numbers are the largest difference over the largest value. *Brought to*: what was done to our map to compare",
        "it; *paper*: how far ours is from the paper's formula in loops and float64; *agrees*: yes up to",
        f"{SAME:g}. Where it says no, the reason is below, and the number is how far the peer's map",
        "is from the formula with that change, written by us: the reason holds. Integrated gradients are compared in",
        "double precision: along the way from zero to a picture, rounding opens and shuts other rectifiers.",
        "",
        "| ours | peer | brought to | R3 | R4 | S | paper | agrees |",
        "|---|---|---|---|---|---|---|---|",
    ]


def foot(given: list[str]) -> list[str]:
    return [
        "",
        *(f"- *{name}*: {REASONS[name]}." for name in given),
        "",
        "Not compared: GradientSHAP, DeepLIFT and LRP are Captum's own here; no peer has RISE, Recipro-CAM, Group-CAM,",
        "Opti-CAM or Faster Score-CAM; random maps differ by nature; attention methods read no convolutional net.",
    ]


if __name__ == "__main__":
    main()
