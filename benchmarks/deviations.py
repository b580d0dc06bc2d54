"""What the peers compute instead, in our own words, and the papers' formulas in slow loops: for agreement.py.

All of it reads one `Setting` and gives a raw map ``h w``; nothing of the library is used but `Setting.ours`.
"""

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import camlucida as cl

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))  # the slow twins
Map = Tensor


@dataclass
class Setting:
    """One net, picture, layer and class; what the formulas need of them is read here by hand, without the library."""

    name: str
    net: nn.Module
    x: Tensor
    layer: str
    index: int
    facts: str
    biased: list[nn.Module] = field(default_factory=list)  # layers whose bias FullGrad counts

    @property
    def module(self) -> nn.Module:
        return self.net.get_submodule(self.layer)

    def ours(self, method: str, layer: bool = True) -> Map:
        """Our raw map, ``h w``."""
        at = self.layer if layer else None
        return cl.explain(self.net, self.x, target=self.index, method=method, layer=at).map[0]

    def wide(self) -> "Setting":
        """The same in double precision."""
        net = copy.deepcopy(self.net).double()
        return Setting(self.name, net, self.x.double(), self.layer, self.index, self.facts)

    @cached_property
    def read(self) -> tuple[Tensor, Tensor, float]:
        """Activation and gradient at the layer, ``c h w``, and the score."""
        kept: list[Tensor] = []
        handle = self.module.register_forward_hook(lambda _m, _i, made: kept.append(made))
        score = self.net(self.x)[0, self.index]
        handle.remove()
        (grad,) = torch.autograd.grad(score, kept[-1])
        return kept[-1][0].detach(), grad[0], float(score.detach())

    def score(self, xs: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.cat([self.net(part)[:, self.index] for part in xs.split(32)]).clone()

    def without(self, act: Tensor) -> float:
        """The score with ``c h w`` put in the layer's place."""
        handle = self.module.register_forward_hook(lambda _m, _i, _made: act[None])
        try:
            return float(self.score(self.x))
        finally:
            handle.remove()


# ------------------------------------------------------------- what the peers do instead, in our words: raw map `h w`


def plus(weights: Tensor, act: Tensor) -> Map:
    return torch.einsum("c,chw->hw", weights, act)


def gradcampp_eps(s: Setting) -> Map:
    a, g, _ = s.read
    under = 2 * g**2 + a.sum((1, 2), keepdim=True) * g**3 + 1e-6
    return plus((g.relu() * g**2 / under).sum((1, 2)), a)


def gradcampp_undivided(s: Setting) -> Map:
    a, g, _ = s.read
    return plus((g**2 * g.relu()).sum((1, 2)), a)


def smooth_summed(s: Setting) -> Map:
    a, g, _ = s.read
    under = 2 * g**2 + (g**3 * a).sum((1, 2), keepdim=True) + 1e-8
    return plus((g**2 / under * g.relu()).sum((1, 2)), a)


def xgradcam_eps(s: Setting) -> Map:
    a, g, _ = s.read
    return plus((g * a).sum((1, 2)) / (a.sum((1, 2)) + 1e-7), a)


def centred(weigh: Callable[[Tensor, Tensor], Tensor], largest: bool = False) -> Callable[[Setting], list[Map]]:
    """The first principal component after the mean place is taken away; both signs, unless the largest is positive."""

    def run(s: Setting) -> list[Map]:
        a, g, _ = s.read
        rows = weigh(a, g).flatten(1).T.double()
        rows = rows - rows.mean(0)
        found = (rows @ torch.linalg.svd(rows, full_matrices=False)[2][0]).reshape(a.shape[1:]).float()
        if largest:
            return [found if found.max() >= -found.min() else -found]
        return [found, -found]

    return run


def kernel_offset(s: Setting) -> list[Map]:
    """Kernel tanh(x·y/c + 1) of centred features, c channels: scikit-learn's default; either sign."""
    a, _, _ = s.read
    rows = a.flatten(1).T.double()
    rows = rows - rows.mean(0)
    k = torch.tanh(rows @ rows.T / len(a) + 1)
    k = k - k.mean(0) - k.mean(1, keepdim=True) + k.mean()
    values, vectors = torch.linalg.eigh(k)
    found = (vectors[:, -1] * values[-1].clamp(min=0).sqrt()).reshape(a.shape[1:]).float()
    return [found, -found]


def fem_share(s: Setting) -> Map:
    a, _, _ = s.read
    high = a > a.mean((1, 2), keepdim=True) + 2 * a.std((1, 2), keepdim=True, correction=0)
    return plus(high.float().mean((1, 2)), a)


def ablation_divided(s: Setting) -> Map:
    return s.ours("ablationcam") / s.read[2]


def scorecam_of(masks: Tensor, s: Setting) -> Map:
    return plus(s.score(s.x * masks[:, None]).softmax(0), s.read[0])


def unit(maps: Tensor, eps: float = 1e-8) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low + eps)


def scorecam_corners(s: Setting) -> Map:
    size = s.x.shape[2:]
    return scorecam_of(unit(F.interpolate(s.read[0][None], size, mode="bilinear", align_corners=True)[0]), s)


def scorecam_scaled_first(s: Setting) -> Map:
    size = s.x.shape[2:]
    return scorecam_of(F.interpolate(unit(s.read[0])[None], size, mode="bilinear", align_corners=False)[0], s)


def fullgrad_by_channel(s: Setting) -> Map:
    """Every channel of every term brought to [0, 1] by itself; the biases that grad-cam counts; in its order."""
    from pytorch_grad_cam.utils.image import scale_cam_image

    made: list[Tensor] = []
    handles = [m.register_forward_hook(lambda _m, _i, out: made.append(out)) for m in s.biased]
    x = s.x.clone().requires_grad_()
    grads = torch.autograd.grad(s.net(x)[0, s.index], [x, *made])
    for handle in handles:
        handle.remove()
    terms = [(x.detach() * grads[0])[0]]
    for m, g in zip(s.biased, grads[1:], strict=True):
        bias = m.bias.detach()
        if isinstance(m, nn.BatchNorm2d):
            bias = bias - m.running_mean * m.weight.detach() / torch.sqrt(m.running_var + m.eps)
        terms.append(bias[:, None, None] * g[0])
    size = (x.shape[-1], x.shape[-2])
    return torch.from_numpy(sum(scale_cam_image(np.abs(t.numpy()), size).sum(0) for t in terms))


# ------------------------------------------------------------------------------------------ the papers, in slow loops


def twin(name: str) -> Callable[[Setting], Map]:
    """The paper's formula over single numbers, from activation and gradient."""

    def run(s: Setting) -> Map:
        from replicas import REPLICAS

        a, g, _ = s.read
        return REPLICAS[name](a[None], g[None])[0]

    return run


def slow_ablation(s: Setting) -> Map:
    """Desai 2020, eq. 3 without its division: the whole net once for every channel that is taken away."""
    a, _, y = s.read
    made = torch.zeros(a.shape[1:], dtype=torch.float64)
    for k in range(len(a)):
        less = a.clone()
        less[k] = 0
        made += (y - s.without(less)) * a[k].double()
    return made


def slow_scorecam(s: Setting) -> Map:
    """Wang 2020, alg. 1: channel by channel in float64, enlarged between centres of cells, then brought to [0, 1]."""
    a = s.read[0].double()
    lines = [between(cells, full) for cells, full in zip(a.shape[1:], s.x.shape[2:], strict=True)]
    scores = []
    for one in a:
        mask = lines[0] @ one @ lines[1].T
        low, high = float(mask.min()), float(mask.max())
        mask = (mask - low) / (high - low) if high > low else torch.zeros_like(mask)
        scores.append(float(s.score(s.x * mask.to(s.x))))
    top = max(scores)
    total = sum(math.exp(y - top) for y in scores)
    return sum(math.exp(y - top) / total * one for y, one in zip(scores, a, strict=True))


def between(cells: int, full: int) -> Tensor:
    """How much of each cell of an axis every pixel shows: linear between the centres of cells."""
    made = torch.zeros(full, cells, dtype=torch.float64)
    for p in range(full):
        at = min(max((p + 0.5) * cells / full - 0.5, 0.0), cells - 1.0)
        low = math.floor(at)
        made[p, low] += 1 - (at - low)
        made[p, min(low + 1, cells - 1)] += at - low
    return made


def slow_fem(s: Setting) -> Map:
    """Fuad 2020: the k-sigma rule over single numbers; a channel's kept places count by its mean."""
    a = s.read[0].double()
    made = torch.zeros(a.shape[1:], dtype=torch.float64)
    for one in a:
        v = one.flatten().tolist()
        mean = sum(v) / len(v)
        sigma = (sum((q - mean) ** 2 for q in v) / len(v)) ** 0.5
        made += torch.tensor([mean * (q > mean + 2 * sigma) for q in v]).reshape(made.shape)
    return made


def slow_eigen(weigh: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Setting], Map]:
    """The first right singular vector by 2,000 power iterations, not centred; the sign is left to the comparison."""

    def run(s: Setting) -> Map:
        a, g, _ = s.read
        rows = weigh(a, g).flatten(1).T.double()
        v = torch.ones(rows.shape[1], dtype=torch.float64)
        for _ in range(2000):
            v = rows.T @ (rows @ v)
            v = v / v.norm()
        return (rows @ v).reshape(a.shape[1:])

    return run
