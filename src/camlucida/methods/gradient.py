"""Methods that read the activation of a layer and the gradient of the score at it.

``A`` is the activation and ``G = ∂y/∂A`` its gradient, both ``b c *space``; ``Z`` is the number of places and ``⟨·⟩``
the mean over them. Every map is raw and signed, at the layer's resolution: the ReLU that most papers end with is a
separate, recorded step (`maps.rectify`). Where a net ends in global average pooling and a linear layer the gradient
is the same at every place; ``at_gap`` is the method's closed form there, from ``g = G`` at any place.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from camlucida.maps import weigh
from camlucida.registry import register
from camlucida.types import Act, Map, Scorer


def _sum(per_place: Act) -> Float[Tensor, "b c"]:
    return per_place.flatten(2).sum(2)


def _has_sum(act: Act) -> Bool[Tensor, "b c"]:
    """Whether a channel's signed sum is more than rounding noise; else it has no mean to be sensitive to."""
    return _sum(act).abs() > torch.finfo(act.dtype).eps * 8 * _sum(act.abs())


def _xgrad_weights(act: Act, grad: Act) -> Float[Tensor, "b c"]:
    safe = _has_sum(act)
    return torch.where(safe, _sum(grad * act) / torch.where(safe, _sum(act), 1), 0)


@register(
    "gradcam",
    title="Grad-CAM",
    paper="selvaraju2017",
    formula="Σ_k ⟨G_k⟩ A_k",
    at_gap=lambda g, _act: g,
)
def gradcam(act: Act, grad: Act) -> Map:
    """Grad-CAM: each channel weighs as much as its mean gradient.

    ``M = Σ_k ⟨G_k⟩ A_k``; shapes ``b c *space`` → ``b *space``; units of the score. [selvaraju2017]

    >>> gradcam(torch.ones(1, 2, 4, 4), torch.full((1, 2, 4, 4), 0.5)).shape
    torch.Size([1, 4, 4])
    """
    return weigh(grad.flatten(2).mean(2), act)


@register(
    "gradcampp",
    title="Grad-CAM++",
    paper="chattopadhyay2018",
    formula="Σ_k w_k A_k,  w_k = Σ relu(G_k) / (2 + G_k Σ A_k)",
    homogeneous=False,
    deviations=(
        "the factor exp(y) of eq. 19 is left out: it is one positive number a picture, overflows from y ≈ 88 on and "
        "falls out of the normalised map; negative channel sums, which the paper's rectified maps never have, count "
        "as zero: with them the fraction would have a pole"
    ),
    at_gap=lambda g, act: g.relu() * act[0, 0].numel() / (2 + g.relu() * _sum(act).relu()),
)
def gradcampp(act: Act, grad: Act) -> Map:
    """Grad-CAM++: places of positive gradient weigh by eq. 19, written without poles and epsilons.

    ``w_k = Σ α relu(G_k)`` with ``α = G²/(2G² + G³ ΣA_k) = 1/(2 + G ΣA_k)`` where ``G > 0``; ``M = Σ_k w_k A_k``;
    shapes ``b c *space`` → ``b *space``. [chattopadhyay2018]

    >>> gradcampp(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))[0, 0, 0].item()  # 4 · 1/(2 + 4) · 1
    0.6666666865348816
    """
    total = _sum(act).relu()
    total = total.reshape(total.shape + (1,) * (act.dim() - 2))
    positive = grad.relu()
    return weigh(_sum(positive / (2 + positive * total)), act)


def _hirescam_by_place(scorer: Scorer) -> Float[Tensor, "t *space"]:
    """``M(p) = d/dε y(A + ε A ⊙ 1_p)``: a derivative along each place, which all classes share."""
    act = scorer.act
    flat, places = act.flatten(1), act[0].numel()

    def alone(rows: Tensor) -> Tensor:
        at = rows.to(flat.device)
        made = flat.new_zeros(len(at), *flat.shape)
        made[torch.arange(len(at)), :, at] = flat[:, at].T
        return made.reshape(-1, *act.shape)

    return scorer.along(places, alone).reshape(-1, *act.shape[1:])


@register(
    "hirescam",
    title="HiResCAM",
    paper="draelos2020",
    formula="Σ_k G_k ⊙ A_k",
    at_gap=lambda g, _act: g,
    by_place=_hirescam_by_place,
)
def hirescam(act: Act, grad: Act) -> Map:
    """HiResCAM: gradient times activation, place by place; on piecewise linear tails it sums to the score.

    ``M = Σ_k G_k ⊙ A_k``; shapes ``b c *space`` → ``b *space``; units of the score. [draelos2020]

    >>> hirescam(torch.ones(1, 2, 3), torch.ones(1, 2, 3)).tolist()
    [[2.0, 2.0, 2.0]]
    """
    return (grad * act).sum(1)


@register(
    "xgradcam",
    title="XGrad-CAM",
    paper="fu2020",
    formula="Σ_k w_k A_k,  w_k = Σ(G_k ⊙ A_k) / ΣA_k",
    deviations="a channel whose signed sum is no more than rounding noise weighs zero instead of dividing by it",
    at_gap=lambda g, act: torch.where(_has_sum(act), g, 0),
)
def xgradcam(act: Act, grad: Act) -> Map:
    """XGrad-CAM: the mean gradient weighted by the activation, from the axioms of sensitivity and conservation.

    ``w_k = Σ(G_k ⊙ A_k) / ΣA_k``; ``M = Σ_k w_k A_k``; shapes ``b c *space`` → ``b *space``. [fu2020]

    >>> xgradcam(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[1.0, 0.0]]])).tolist()  # w = 1/4
    [[0.25, 0.75]]
    """
    return weigh(_xgrad_weights(act, grad), act)


@register(
    "layercam",
    title="LayerCAM",
    paper="jiang2021",
    formula="Σ_k relu(G_k) ⊙ A_k",
    at_gap=lambda g, _act: g.relu(),
)
def layercam(act: Act, grad: Act) -> Map:
    """LayerCAM: positive gradients weigh their own place; good at shallow layers.

    ``M = Σ_k relu(G_k) ⊙ A_k``; shapes ``b c *space`` → ``b *space``. [jiang2021]

    >>> layercam(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[1.0, -1.0]]])).tolist()
    [[1.0, 0.0]]
    """
    return (grad.relu() * act).sum(1)


@register(
    "elementwise",
    title="Grad-CAM element-wise",
    paper="pillai2021",
    formula="Σ_k relu(G_k ⊙ A_k)",
)
def elementwise(act: Act, grad: Act) -> Map:
    """Element-wise Grad-CAM: every channel is rectified before the sum; equals LayerCAM where ``A ≥ 0``.

    ``M = Σ_k relu(G_k ⊙ A_k)``; shapes ``b c *space`` → ``b *space``. [pillai2021]

    >>> elementwise(torch.tensor([[[1.0, -3.0]]]), torch.tensor([[[1.0, -1.0]]])).tolist()
    [[1.0, 3.0]]
    """
    return (grad * act).relu().sum(1)
