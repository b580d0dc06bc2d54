"""Methods that ask the model again with a part of a layer's activation taken away, or kept alone.

``A`` is the activation ``c *space``, ``y(·)`` the score of what follows the layer; ``Z`` is the number of places.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from camlucida.methods import _masks as masks
from camlucida.registry import register
from camlucida.types import Scorer

Maps = Float[Tensor, "t *space"]


@register(
    "reciprocam",
    title="Recipro-CAM",
    paper="byun2022",
    formula="M(i) = y(A ⊙ 1_i) − y(0)",
    needs="model",
    cost="1 + Z tails, all classes; closed form on linear heads",
    deviations=(
        "the score of an empty activation is taken away, so that zero means no evidence; baseline=False leaves it. "
        "gaussian=True keeps the neighbours of a place, too, by the paper's 3×3 weights"
    ),
)
def reciprocam(scorer: Scorer, *, baseline: bool = True, gaussian: bool = False) -> Maps:
    """Recipro-CAM: the score of each place's features alone.

    ``M(i) = y(A ⊙ m_i) − y(0)``, where ``m_i`` is one at place ``i`` only, or, ``gaussian``, ¼, ½, ¼ along each axis
    around it; shape ``t *space``; units of the score. ``baseline=False``: without ``− y(0)``. [byun2022]

    >>> import camlucida as cl
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 5))
    >>> cl.explain(net, torch.rand(1, 3, 8, 8), target=2, method="reciprocam:gaussian=true", layer="0").map.shape
    torch.Size([1, 6, 6])
    """
    act = scorer.act
    near = [masks.near(n, 2 if gaussian else 1, act) for n in act.shape[1:]]
    if scorer.slope is not None:
        terms = scorer.slope * act
        empty = scorer.base - terms.flatten(1).sum(1)
        gain = masks.spread(terms.sum(1), near)  # the weights around a place are those of its neighbours for it
        return gain if baseline else gain + empty.reshape(-1, *(1,) * (act.dim() - 1))
    places = act[0].numel()

    def alone(rows: Tensor) -> Tensor:
        at = torch.unravel_index(rows.clamp(max=places - 1).to(act.device), act.shape[1:])
        kept = masks.outer([line[i] for line, i in zip(near, at, strict=True)])
        kept[rows == places] = 0  # the last row is the empty activation
        return act * kept.unsqueeze(1)

    scores = scorer.at_layer(places + 1, alone)
    found = _gains(scores) if baseline else scores[:, :-1]
    return found.reshape(-1, *act.shape[1:])


def _gains(scores: Float[Tensor, "t n"]) -> Float[Tensor, "t n-1"]:
    """What each score has more than the last one; no more than rounding is nothing."""
    found = scores[:, :-1] - scores[:, -1:]
    return torch.where(found.abs() <= 8 * torch.finfo(found.dtype).eps * scores.abs().amax(1, keepdim=True), 0, found)


@register(
    "ablationcam",
    title="Ablation-CAM",
    paper="desai2020",
    formula="Σ_k w_k A_k,  w_k = y − y(A without k)",
    needs="model",
    cost="1 + one tail a live channel; closed form on linear heads",
    deviations=(
        "not divided by the score, which is one number a picture and falls out of the normalised map, but turns it "
        "over where it is negative; relative=True divides, as the paper has it. calibrated=True divides each drop by "
        "the channel's sum, so that rescaled channels give the same map"
    ),
)
def ablationcam(scorer: Scorer, *, calibrated: bool = False, relative: bool = False) -> Maps:
    """Ablation-CAM: a channel weighs as much as the score drops without it.

    ``w_k = y − y(A with A_k = 0)``, over ``ΣA_k`` if ``calibrated``, over ``y`` if ``relative``; ``M = Σ_k w_k A_k``;
    shape ``t *space``; units of score × activation. [desai2020]

    >>> import camlucida as cl
    >>> net = torch.nn.Sequential(torch.nn.Conv1d(2, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 6, 5))
    >>> cl.explain(net, torch.rand(1, 2, 8), target=2, method="ablationcam:calibrated=true", layer="0").map.shape
    torch.Size([1, 6])
    """
    act = scorer.act
    drop = _drops(scorer) if scorer.slope is None else (scorer.slope * act).flatten(2).sum(2)
    if relative:
        drop = drop / scorer.base[:, None]
    if calibrated:
        sums, sizes = act.flatten(1).sum(1), act.flatten(1).abs().sum(1)
        solid = sums.abs() > torch.finfo(act.dtype).eps * 8 * sizes
        drop = torch.where(solid, drop / torch.where(solid, sums, 1), 0)
    return torch.einsum("tc,c...->t...", drop, act)


def _drops(scorer: Scorer) -> Float[Tensor, "t c"]:
    """How far each score falls without each channel; a channel that is zero everywhere is not asked for."""
    act = scorer.act
    live = act.flatten(1).abs().amax(1).nonzero()[:, 0]

    def without(rows: Tensor) -> Tensor:
        made = act.repeat(len(rows), *(1,) * act.dim())
        made[torch.arange(len(rows)), live[rows.to(live.device)]] = 0
        return made

    drop = scorer.base.new_zeros(len(scorer.base), len(act))
    drop[:, live] = scorer.base[:, None] - scorer.at_layer(len(live), without)
    return drop
