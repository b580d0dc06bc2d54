"""Methods that look at more than one gradient: how it bends, along a path, and under noise.

``A`` is the activation ``c *space`` of one picture, ``G = ∂y/∂A`` its gradient, ``H`` the Hessian of the score at it,
``⟨·⟩`` the mean over the places. All of it is asked of what follows the layer alone.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from camlucida.errors import MethodError
from camlucida.registry import register
from camlucida.types import Scorer

Maps = Float[Tensor, "t *space"]
PATH_BYTES = 2**27  # gradients that are held at a time
_TRIPLINGS = 3  # from `steps` to 27 times as many


def _at_once(scorer: Scorer, count: int) -> int:
    """How many of ``count`` gradients of all targets fit."""
    each = len(scorer.base) * scorer.act.numel() * scorer.act.element_size()
    return max(1, min(count, PATH_BYTES // each))


@register(
    "shapleycam",
    title="ShapleyCAM",
    paper="cai2025",
    formula="Σ_k ⟨G_k − ½ (H A)_k⟩ A_k",
    needs="model",
    cost="1 + tail and its second derivative",
    deviations=(
        "the target is the one asked for; the paper's ReST is target=classes(…, score='rest'). On tails that are "
        "piecewise linear in the score asked for (ReLU nets and a logit) it is Grad-CAM"
    ),
)
def shapleycam(scorer: Scorer) -> Maps:
    """ShapleyCAM: the channels' Shapley values, with the score expanded to second order around the activation.

    ``w_k = ⟨G_k − ½ (H A)_k⟩``, ``M = Σ_k w_k A_k``; shape ``t *space``; units of the score. [cai2025]

    >>> import camlucida as cl
    >>> parts = torch.nn.Conv2d(3, 4, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    >>> net = torch.nn.Sequential(*parts)
    >>> cl.explain(net, torch.rand(1, 3, 8, 8), target=cl.classes(2, "rest"), method="shapleycam", layer="1").map.shape
    torch.Size([1, 6, 6])
    """
    act = scorer.act
    slope = scorer.slopes(act[None])[:, 0]
    worth = slope - scorer.bend(act.expand_as(slope)) / 2
    return torch.einsum("tc,c...->t...", worth.flatten(2).mean(2), act)


@register(
    "layerig",
    title="Layer Integrated Gradients",
    paper="sundararajan2017",
    formula="Σ_k (A − A′)_k ⊙ ∫₀¹ G_k(A′ + s (A − A′)) ds",
    needs="model",
    cost="1 + one tail a step",
    deviations=(
        "the path lies at the layer, where it sums to y(A) − y(A′); at layer='input' it is Integrated Gradients "
        "itself. Midpoint rule; steps are tripled while the sum is further off than the share `gap` of what it adds up"
    ),
)
def layerig(scorer: Scorer, *, steps: int = 32, baseline: str = "zero", gap: float = 0.05) -> Maps:
    """Layer Integrated Gradients: the gradient along the straight path from a baseline activation, times the way.

    ``M = Σ_k (A − A′)_k ⊙ (1/n) Σ_j G_k(A′ + (j + ½)/n (A − A′))``; shape ``t *space``; units of the score: the map
    sums to ``y(A) − y(A′)``. ``baseline`` is ``zero``, or ``blank``: what the layer gives for a picture of zeros, which
    is the mean colour to most models. [sundararajan2017]

    Raises: MethodError where 27 times as many steps do not bring the sum within ``gap``: it is then no true account.

    >>> import camlucida as cl
    >>> parts = torch.nn.Conv2d(3, 4, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    >>> net = torch.nn.Sequential(*parts)
    >>> e = cl.explain(net, torch.rand(1, 3, 8, 8), target=2, method="layerig:baseline=blank", layer="1")
    >>> e.map.shape
    torch.Size([1, 6, 6])
    """
    if baseline not in ("zero", "blank") or steps < 1 or gap <= 0:
        raise MethodError(
            "layerig takes steps of at least 1, a gap above 0, and baseline=zero or blank; "
            f"got steps={steps}, gap={gap}, baseline={baseline!r}."
        )
    act = scorer.act
    start = torch.zeros_like(act) if baseline == "zero" else scorer.reads(torch.zeros_like(scorer.x)[None])[0][0]
    if scorer.slope is not None:
        return (scorer.slope * (act - start)).sum(1)
    rise = scorer.base - scorer.at_layer(1, lambda _: start[None])[:, 0]
    for found in _paths(scorer, start, steps):
        off = _gap(found, rise, scorer.base)
        if bool((off <= gap + 8 * torch.finfo(scorer.x.dtype).eps).all()) or not bool(off.isfinite().all()):
            return found  # a model's own rounding is no fault of the path, and NaN has a status of its own
    raise MethodError(
        f"the path does not add up: after {steps * 3**_TRIPLINGS} steps it is {float(off.max()):.0%} off the change of "
        "the score, so its gradients are not those of the score. Ask for more with steps=, allow more with gap=, or "
        "take another layer."
    )


def _gap(found: Maps, rise: Float[Tensor, " t"], base: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """How far a map's sum is off what it should be, as a share of what it adds up or of the score."""
    total, size = found.flatten(1).sum(1), found.flatten(1).abs().sum(1)
    return (total - rise).abs() / torch.stack([base.abs(), rise.abs(), size]).amax(0).clamp(min=1e-30)


def _paths(scorer: Scorer, start: Tensor, steps: int) -> Iterator[Maps]:
    """The maps from ``steps`` points of the path, then from three times as many, which hold the earlier ones."""
    way = scorer.act - start
    total = torch.zeros_like(scorer.base)[(...,) + (None,) * way.dim()].expand(-1, *way.shape).clone()
    at = [(2 * j + 1) / (2 * steps) for j in range(steps)]
    for tripled in range(_TRIPLINGS + 1):
        size = _at_once(scorer, len(at))
        for first in range(0, len(at), size):
            share = way.new_tensor(at[first : first + size])[(...,) + (None,) * way.dim()]
            total += scorer.slopes(start + share * way).sum(1)
        count = steps * 3**tripled
        yield (total / count * way).sum(1)
        at = [(2 * j + 1) / (6 * count) for j in range(3 * count) if j % 3 != 1]


@register(
    "smoothgradcampp",
    title="Smooth Grad-CAM++",
    paper="omeiza2019",
    formula="Σ_k w_k A_k,  w_k = Σ relu(⟨G⟩) ⟨G²⟩ / (2⟨G²⟩ + ΣA_k ⟨G³⟩), ⟨·⟩ over noisy pictures",
    needs="model",
    homogeneous=False,
    cost="1 + samples × (1 + tail); Grad-CAM++ on linear heads",
    deviations=(
        "as Grad-CAM++: the factor exp(y) is left out of the derivatives, and ΣA and ⟨G³⟩ count where positive, so "
        "that the fraction has no pole; noise is a share of the picture's range, as in SmoothGrad; activation and "
        "class are those of the clean picture"
    ),
)
def smoothgradcampp(scorer: Scorer, *, samples: int = 16, noise: float = 0.15) -> Maps:
    """Smooth Grad-CAM++: Grad-CAM++ from the mean first, second and third powers of the gradient under noise.

    ``w_k = Σ α relu(⟨G⟩)``, ``α = ⟨G²⟩ / (2⟨G²⟩ + ΣA_k ⟨G³⟩)``, means over ``samples`` pictures with normal noise of
    standard deviation ``noise · (max x − min x)``; ``M = Σ_k w_k A_k``; shape ``t *space``. [omeiza2019]

    Raises: MethodError where there are no samples, or the noise is negative.

    >>> import camlucida as cl
    >>> parts = torch.nn.Conv2d(3, 4, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    >>> net = torch.nn.Sequential(*parts)
    >>> e = cl.explain(net, torch.rand(1, 3, 8, 8), target=2, method="smoothgradcampp:samples=4", layer="1")
    >>> e.map.shape
    torch.Size([1, 6, 6])
    """
    if samples < 1 or noise < 0:
        raise MethodError(f"smoothgradcampp takes at least 1 sample and noise of 0 or more; got {samples} and {noise}.")
    act = scorer.act
    one, two, three, size = _moments(scorer, samples, noise)
    bulk = act.flatten(1).sum(1).relu().reshape(-1, *(1,) * (act.dim() - 1)) * size
    alpha = two / torch.where(two > 0, 2 * two + bulk * three.relu(), 1)
    weights = (alpha * one.relu()).flatten(2).sum(2) * size.flatten(1)
    return torch.einsum("tc,c...->t...", weights, act)


def _moments(scorer: Scorer, samples: int, noise: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The means of ``u``, ``u²`` and ``u³`` over noisy pictures, and the ``size`` of each target's gradient: ``u`` is
    the gradient over it, so that no power of a small gradient underflows."""
    if scorer.slope is not None:  # the same gradient whatever the picture
        size = _size(scorer.slope[:, None])
        u = scorer.slope / size
        return u, u**2, u**3, size
    x, size = scorer.x, torch.empty(0)
    spread = noise * float(x.max() - x.min())
    sums: list[Tensor] = []
    room = _at_once(scorer, samples)
    for first in range(0, samples, room):
        shape = (min(room, samples - first), *x.shape)
        grain = torch.randn(shape, generator=scorer.random, dtype=torch.float64)
        _, grads = scorer.reads(x + (grain * spread).to(x))
        size = size if sums else _size(grads)
        u = grads / size[:, None]
        powers = [u.sum(1), (u**2).sum(1), (u**3).sum(1)]
        sums = [a + b for a, b in zip(sums, powers, strict=True)] if sums else powers
    one, two, three = (s / samples for s in sums)
    return one, two, three, size


def _size(grads: Float[Tensor, "t n c *space"]) -> Tensor:
    """The largest gradient of each target, one where it has none; shaped to divide ``t c *space``."""
    peak = grads.abs().flatten(1).amax(1)
    return torch.where(peak > 0, peak, 1).reshape(-1, *(1,) * (grads.dim() - 2))
