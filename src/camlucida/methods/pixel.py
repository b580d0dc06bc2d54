"""Methods that read the gradient at the picture itself, pixel by pixel; at any other layer if one is named.

``x`` is the picture (or the activation), ``G = ∂y/∂x`` its gradient, ``max_c`` and ``Σ_c`` go over channels. Where a
paper shows magnitudes its map is ``max_c |·|``, which is never negative; ``signed=True`` sums over channels instead.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from camlucida.errors import MethodError
from camlucida.maps import resize, weigh
from camlucida.registry import register
from camlucida.types import Act, Map, Scorer

Maps = Float[Tensor, "t *space"]
_VALUES = 2**24  # gradients of many samples are averaged so many numbers at a time
_MAGNITUDE = "as the paper, magnitudes: the largest over the channels; signed=True sums over them, signs kept"
_BLIND = (
    "randomised weights and the class: it mostly shows the edges of the picture, whatever the model learnt "
    "(Adebayo et al. 2018)"
)


def _over_channels(grad: Float[Tensor, "b c *space"], signed: bool) -> Map:
    return grad.sum(1) if signed else grad.abs().amax(1)


@register(
    "gradient",
    title="Gradient",
    paper="simonyan2014",
    formula="max_c |G_c|",
    at="input",
    cost="1 + backward",
    deviations=_MAGNITUDE,
)
def gradient(_act: Act, grad: Act, *, signed: bool = False) -> Map:
    """Gradient (saliency): how fast the score changes with each pixel.

    ``M = max_c |G_c|``, or ``Σ_c G_c`` if ``signed``; shapes ``b c *space`` → ``b *space``; score per unit of the
    input. [simonyan2014]

    >>> gradient(torch.ones(1, 2, 2), torch.tensor([[[1.0, 2.0], [-3.0, 1.0]]])).tolist()
    [[3.0, 2.0]]
    """
    return _over_channels(grad, signed)


@register(
    "gradientxinput",
    title="Gradient × Input",
    paper="shrikumar2017",
    formula="Σ_c G_c ⊙ x_c",
    at="input",
    cost="1 + backward",
    deviations="none; at a layer it is HiResCAM",
    at_gap=lambda g, _act: g,
)
def gradientxinput(act: Act, grad: Act) -> Map:
    """Gradient × input: what each pixel adds to the score, to first order.

    ``M = Σ_c G_c ⊙ x_c``; shapes ``b c *space`` → ``b *space``; units of the score. [shrikumar2017]

    >>> gradientxinput(torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[3.0, 1.0]]])).tolist()
    [[3.0, -2.0]]
    """
    return (grad * act).sum(1)


def _shown(scorer: Scorer, grad: Float[Tensor, "t c *space"], signed: bool) -> Maps:
    """The map; of NaN where the score is none: rectifiers would pass a number back all the same."""
    broken = ~scorer.base.isfinite().reshape(-1, *(1,) * (grad.dim() - 2))
    return _over_channels(grad, signed).masked_fill(broken, torch.nan)


def _ruled(scorer: Scorer, rule: str, signed: bool) -> Maps:
    return _shown(scorer, scorer.slopes(scorer.act[None], rule)[:, 0], signed)


@register(
    "guidedbackprop",
    title="Guided Backpropagation",
    paper="springenberg2015",
    formula="max_c |G'_c|,  G' past a rectifier: relu(G') ⊙ 1[x > 0]",
    needs="model",
    at="input",
    cost="2 + backward",
    deviations=f"{_MAGNITUDE}; ReLU6 and clamp(min=0) are rectifiers, too, SiLU, GELU and leaky ones are not",
    insensitive=_BLIND,
)
def guidedbackprop(scorer: Scorer, *, signed: bool = False) -> Maps:
    """Guided backpropagation: the gradient, where each rectifier passes back only what is positive and was active.

    ``M = max_c |G'_c|``, or ``Σ_c G'_c`` if ``signed``; ``b c *space`` for one picture → ``t *space``.
    [springenberg2015]

    Raises: MethodError for a model without any rectifier.

    >>> import camlucida as cl
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(5))
    >>> cl.explain(net, torch.randn(1, 3, 8, 8), target=2, method="guidedbackprop").map.shape
    torch.Size([1, 8, 8])
    """
    return _ruled(scorer, "guided", signed)


@register(
    "deconvnet",
    title="Deconvnet",
    paper="zeiler2014",
    formula="max_c |G'_c|,  G' past a rectifier: relu(G')",
    needs="model",
    at="input",
    cost="2 + backward",
    deviations=f"{_MAGNITUDE}; ReLU6 and clamp(min=0) are rectifiers, too, SiLU, GELU and leaky ones are not",
    insensitive=_BLIND,
)
def deconvnet(scorer: Scorer, *, signed: bool = False) -> Maps:
    """Deconvnet: the gradient, where each rectifier passes back what is positive, whatever its own input was.

    ``M = max_c |G'_c|``, or ``Σ_c G'_c`` if ``signed``; ``b c *space`` for one picture → ``t *space``. [zeiler2014]

    Raises: MethodError for a model without any rectifier.

    >>> import camlucida as cl
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(5))
    >>> cl.explain(net, torch.randn(1, 3, 8, 8), target=2, method="deconvnet").map.shape
    torch.Size([1, 8, 8])
    """
    return _ruled(scorer, "deconv", signed)


@register(
    "guidedgradcam",
    title="Guided Grad-CAM",
    paper="selvaraju2017",
    formula="max_c |G'_c ⊙ up(relu(Σ_k ⟨G_k⟩ A_k))|,  G' as guided backpropagation",
    needs="model",
    cost="3 + backward",
    deviations=f"{_MAGNITUDE}; ReLU6 and clamp(min=0) are rectifiers, too, SiLU, GELU and leaky ones are not",
    insensitive="where Grad-CAM is wide, " + _BLIND,
)
def guidedgradcam(scorer: Scorer, *, signed: bool = False) -> Float[Tensor, "t *full"]:
    """Guided Grad-CAM: guided backpropagation at the pixels, where Grad-CAM at the layer has evidence.

    ``M = max_c |G'_c ⊙ up(relu(Σ_k ⟨G_k⟩ A_k))|``, or the sum if ``signed``, at the resolution of the picture;
    ``b c *space`` for one picture → ``t *full``. [selvaraju2017]

    Raises: MethodError for a model without any rectifier.

    >>> import camlucida as cl
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(5))
    >>> cl.explain(net, torch.randn(1, 3, 8, 8), target=2, method="guidedgradcam").map.shape
    torch.Size([1, 8, 8])
    """
    slope = scorer.slopes(scorer.act[None])[:, 0]
    coarse = weigh(slope.flatten(2).mean(2), scorer.act.expand_as(slope)).relu()
    fine = scorer.pixels(scorer.x[None], "guided")[:, 0]
    return _shown(scorer, fine * resize(coarse, fine.shape[2:])[:, None], signed)


def _averaged(scorer: Scorer, count: int, grads: Callable[[range], Tensor]) -> Float[Tensor, "t c *space"]:
    """The mean of ``grads(range)``, ``t n c *space``, over ``count`` samples, as many at a time as are small."""
    size = max(1, _VALUES // (len(scorer.base) * scorer.act.numel()))
    total = torch.zeros_like(scorer.act).expand(len(scorer.base), *scorer.act.shape)
    for start in range(0, count, size):
        total = total + grads(range(start, min(start + size, count))).sum(1)
    return total / count


def _counted(name: str, count: int) -> None:
    if count < 1:
        raise MethodError(f"{name} is a number of points to average over, 1 or more; got {count}.")


@register(
    "smoothgrad",
    title="SmoothGrad",
    paper="smilkov2017",
    formula="max_c |mean_n G_c(x + ε_n)|,  ε ~ N(0, (noise · (max x − min x))²)",
    needs="model",
    at="input",
    cost="1 + samples · (1 + backward)",
    deviations=f"{_MAGNITUDE}; the noise is seeded, the same in every call",
)
def smoothgrad(scorer: Scorer, *, samples: int = 25, noise: float = 0.15, signed: bool = False) -> Maps:
    """SmoothGrad: the mean gradient over noisy copies of the picture.

    ``M = max_c |mean_n G_c(x + ε_n)|``, or the sum if ``signed``; ``noise`` is in parts of the picture's own range;
    ``b c *space`` for one picture → ``t *space``. [smilkov2017]

    >>> import camlucida as cl
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.LazyLinear(5))
    >>> cl.explain(net, torch.randn(1, 3, 8, 8), target=2, method="smoothgrad:samples=4").map.shape
    torch.Size([1, 8, 8])
    """
    _counted("samples", samples)
    if not noise >= 0:
        raise MethodError(f"SmoothGrad: noise is a share of the picture's range, 0 or more; got {noise:g}.")
    x = scorer.x
    spread = float(x.max() - x.min()) * noise

    def grads(rows: range) -> Tensor:
        # Drawn one by one in one precision: neither the chunk nor the model's precision changes the noise.
        drawn = torch.stack([torch.randn(x.shape, generator=scorer.random) for _ in rows])
        return scorer.reads(x + spread * drawn.to(x))[1]

    return _shown(scorer, _averaged(scorer, samples, grads), signed)


_BASELINES: dict[str, Callable[[Float[Tensor, "c *space"]], Tensor]] = {
    "zero": torch.zeros_like,
    "mean": lambda act: act.flatten(1).mean(1).reshape(-1, *(1,) * (act.dim() - 1)).expand_as(act),
}


@register(
    "integratedgradients",
    title="Integrated Gradients",
    paper="sundararajan2017",
    formula="Σ_c (x − x')_c ⊙ ∫₀¹ G_c(x' + α(x − x')) dα",
    needs="model",
    at="input",
    cost="1 + steps · (1 + backward); closed form on linear heads",
    deviations=(
        "the integral by the midpoint rule, more exact than the paper's right sum; the baseline is zero after "
        "preprocessing, a grey picture, where the paper takes black; baseline=mean is the picture's own mean colour"
    ),
)
def integratedgradients(scorer: Scorer, *, steps: int = 32, baseline: str = "zero") -> Maps:
    """Integrated gradients: what each pixel adds on the way from a baseline to the picture; sums to the difference.

    ``M = Σ_c (x − x')_c ⊙ mean_s G_c(x' + (s − ½)/steps · (x − x'))``, and ``Σ M ≈ y(x) − y(x')``; ``baseline`` ``x'``
    is ``zero`` or ``mean``; ``b c *space`` for one picture → ``t *space``; units of the score. [sundararajan2017]

    >>> import camlucida as cl
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5, bias=False))
    >>> e = cl.explain(net, torch.randn(1, 3, 2, 2), target=2, method="integratedgradients")
    >>> torch.allclose(e.map.sum((1, 2)), e.scores, atol=1e-5)
    True
    """
    _counted("steps", steps)
    if baseline not in _BASELINES:
        raise MethodError(f"baseline is one of {', '.join(map(repr, _BASELINES))}; got {baseline!r}.")
    start = _BASELINES[baseline](scorer.act)
    way = scorer.act - start
    if scorer.slope is not None:
        return (way * scorer.slope).sum(1)

    def grads(rows: range) -> Tensor:
        at = torch.tensor([(s + 0.5) / steps for s in rows], dtype=way.dtype, device=way.device)
        return scorer.slopes(start + at.reshape(-1, *(1,) * way.dim()) * way)

    return (way * _averaged(scorer, steps, grads)).sum(1)
