"""Methods that show the model the picture through masks made from a layer's channels.

``x`` is the picture ``ch *full``, ``A`` the activation ``c *space``, ``m`` a mask ``*full`` in [0, 1] and ``y(·)`` the
score of a picture. ``x|m`` is ``x ⊙ m + fill ⊙ (1 − m)``: what is masked takes the value ``fill`` of the *preprocessed*
tensor, whose zero is the mean colour, not black. A channel becomes a mask as the papers have it: enlarged linearly to
the picture (centres of cells aligned), *then* brought to [0, 1]. Masks are made when their turn comes: memory does not
grow with their number.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from camlucida.errors import MethodError
from camlucida.maps import resize
from camlucida.methods import _masks as masks
from camlucida.registry import register
from camlucida.types import Scorer

Maps = Float[Tensor, "t *space"]
_RULES = ("softmax", "gain", "score")


@register(
    "scorecam",
    title="Score-CAM",
    paper="wang2020",
    formula="Σ_k w_k A_k,  w = softmax_k(y(x|m_k))",
    needs="model",
    homogeneous=False,
    cost="2 + one forward a channel that is not constant",
    deviations=(
        "the baseline score y(x_b) is the same for all channels and cancels in the softmax; weigh='gain' is "
        "y(x|m_k) − y(x|0) without the softmax, weigh='score' the score itself, as the authors' code has it (with a "
        "probability as target); a constant channel, whose mask would be 0/0, hides the whole picture"
    ),
)
def scorecam(scorer: Scorer, *, weigh: str = "softmax", fill: float = 0.0) -> Maps:
    """Score-CAM: a channel weighs as much as the picture scores when seen through it.

    ``M = Σ_k w_k A_k`` with ``w = softmax_k(y(x|m_k))`` and ``m_k`` the enlarged channel from its least to its largest
    value; shape ``t *space``; units of the activation. ``weigh`` is ``softmax``, ``gain`` or ``score``.
    Raises: MethodError for another ``weigh``, or a layer with other axes than the picture. [wang2020]

    >>> import camlucida as cl
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 5))
    >>> cl.explain(net, torch.rand(1, 3, 8, 8), target=2, method="scorecam:weigh=gain", layer="0").map.shape
    torch.Size([1, 6, 6])
    """
    every = torch.arange(len(scorer.act), device=scorer.act.device)
    return _weighed(scorer, every, weigh, fill)


@register(
    "fasterscorecam",
    title="Faster Score-CAM",
    paper="tabayashi2020",
    formula="Score-CAM of the N channels that vary most",
    needs="model",
    homogeneous=False,
    cost="2 + N forwards",
    deviations="none (its source is code, not a paper); the number of channels, 10, is that of tf-keras-vis's examples",
)
def fasterscorecam(scorer: Scorer, *, channels: int = 10, weigh: str = "softmax", fill: float = 0.0) -> Maps:
    """Faster Score-CAM: Score-CAM of the channels with the largest variance over the places, the others left out.

    ``M = Σ_{k ∈ top N by Var(A_k)} w_k A_k``; shape ``t *space``; units and errors as `scorecam`. [tabayashi2020]

    >>> import camlucida as cl
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 5))
    >>> cl.explain(net, torch.rand(1, 3, 8, 8), target=2, method="fasterscorecam:channels=2", layer="0").map.shape
    torch.Size([1, 6, 6])
    """
    masks.within(channels, 1, 1e9, "channels", "Faster Score-CAM")
    varying = scorer.act.flatten(1).var(1, correction=0)
    picked = varying.sort(descending=True, stable=True).indices[:channels]
    return _weighed(scorer, picked, weigh, fill)


def _weighed(scorer: Scorer, picked: Int[Tensor, " n"], weigh: str, fill: float) -> Maps:
    if weigh not in _RULES:
        raise MethodError(f"weigh is one of {', '.join(map(repr, _RULES))}; got {weigh!r}.")
    act = scorer.act[picked]
    masks.same_axes(act, scorer.x, "Score-CAM")
    flat = act.flatten(1)
    live = (flat.amax(1) > flat.amin(1)).nonzero()[:, 0]
    found = _through(scorer, act[live], fill)
    scores = found[:, -1:].repeat(1, len(act))
    scores[:, live] = found[:, :-1]
    weights = scores.softmax(1) if weigh == "softmax" else scores - found[:, -1:] * (weigh == "gain")
    return torch.einsum("tc,c...->t...", weights, act)


def _through(scorer: Scorer, maps: Float[Tensor, "n *space"], fill: float | Tensor) -> Float[Tensor, "t n+1"]:
    """The scores of the picture through each of the maps, enlarged; last, through none: all of it masked."""
    count, full = len(maps), scorer.x.shape[1:]

    def shown(rows: Tensor) -> Tensor:
        made = maps.new_zeros(len(rows), *full)
        inside = rows < count
        made[inside.to(made.device)] = masks.unit(resize(maps[rows[inside].to(maps.device)], full))
        return masks.show(scorer.x, made, fill)

    return scorer.at_input(count + 1, shown)


@register(
    "groupcam",
    title="Group-CAM",
    paper="zhang2021",
    formula="Σ_g w_g M_g,  M_g = denoised relu(Σ_{k∈g} ⟨G_k⟩ A_k),  w_g = y(x|M_g) − y(blurred x)",
    needs="model",
    homogeneous=False,
    cost="1 + tail + one forward a group and target",
    deviations=(
        "groups of as equal size as can be, where channels do not divide; the scores are the target's own (the "
        "paper's are probabilities: target=cl.rank(1, 'probability')); the blur is over the pixels there are at edges"
    ),
)
def groupcam(scorer: Scorer, *, groups: int = 32, above: float = 70.0, blur: int = 51, sigma: float = 50.0) -> Maps:
    """Group-CAM: Score-CAM of the Grad-CAMs of groups of channels, over a blurred picture.

    ``M = Σ_g (y(x|m_g) − y(x̃)) M_g``: ``M_g = relu(Σ_{k∈g} ⟨G_k⟩ A_k)``, zero where not above its percentile
    ``above``; ``m_g`` is ``M_g`` enlarged to [0, 1]; what it masks shows ``x̃``, the picture blurred by a Gaussian of
    ``sigma`` cut at ``blur`` pixels. Shape ``t *space``; units of the score squared. [zhang2021]

    >>> import camlucida as cl
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 5))
    >>> cl.explain(net, torch.rand(1, 3, 8, 8), target=2, method="groupcam:groups=2", layer="0").map.shape
    torch.Size([1, 6, 6])
    """
    masks.within(groups, 1, 1e9, "groups", "Group-CAM")
    masks.within(above, 0, 100, "above", "Group-CAM")
    masks.within(blur, 1, 1e9, "blur", "Group-CAM")
    masks.within(sigma, 1e-6, 1e9, "sigma", "Group-CAM")
    act, x = scorer.act, scorer.x
    masks.same_axes(act, x, "Group-CAM")
    grad = scorer.slopes(act[None])[:, 0] if scorer.slope is None else scorer.slope
    parts = (grad.flatten(2).mean(2).reshape(*grad.shape[:2], *(1,) * (act.dim() - 1)) * act).tensor_split(groups, 1)
    made = torch.stack([part.sum(1) for part in parts], 1).relu()  # t g *space; a group of no channels is zeros
    floor = torch.stack([torch.quantile(m, above / 100, dim=1) for m in made.flatten(2)])
    made = torch.where(made <= floor.reshape(*floor.shape, *(1,) * (act.dim() - 1)), 0, made)  # NaN stays NaN
    live = made.flatten(2).amax(2) > 0
    blurred = masks.spread(x, [masks.gaussian(n, blur, sigma, x) for n in x.shape[1:]])
    scores = _through(scorer, made[live], blurred)
    own = live.nonzero()[:, 0]
    weights = torch.zeros_like(floor)
    weights[live] = (scores[own, torch.arange(len(own))] - scores[own, -1]).to(weights)
    return torch.einsum("tg,tg...->t...", weights, made)


@register(
    "opticam",
    title="Opti-CAM",
    paper="zhang2023",
    formula="Σ_k softmax(u)_k A_k,  u = argmax y(x|m(u))",
    needs="model",
    homogeneous=False,
    cost="1 + one forward and backward a step and target",
    deviations=(
        "none; it optimises the very score that average drop and gain measure, so that these say nothing about it: "
        "compare it by other metrics"
    ),
)
def opticam(scorer: Scorer, *, steps: int = 100, rate: float = 0.1, fill: float = 0.0) -> Maps:
    """Opti-CAM: the mixture of channels through which the picture scores highest, found by Adam.

    ``M = Σ_k softmax(u)_k A_k``, ``u`` from zero by ``steps`` steps up ``y(x|m)``, ``m`` the mixture enlarged to
    [0, 1]; shape ``t *space``; units of the activation. It optimises what average drop measures. [zhang2023]

    >>> import camlucida as cl
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 5))
    >>> cl.explain(net, torch.rand(1, 3, 8, 8), target=2, method="opticam:steps=3", layer="0").map.shape
    torch.Size([1, 6, 6])
    """
    masks.within(steps, 1, 1e9, "steps", "Opti-CAM")
    masks.within(rate, 1e-9, 1e9, "rate", "Opti-CAM")
    act, x = scorer.act, scorer.x
    masks.same_axes(act, x, "Opti-CAM")
    u = act.new_zeros(len(scorer.base), len(act))
    first, second = torch.zeros_like(u), torch.zeros_like(u)

    def mask(u: Tensor) -> Tensor:
        return masks.unit(resize(torch.einsum("tc,c...->t...", u.softmax(1), act), x.shape[1:]))

    for step in range(1, steps + 1):
        made, back = torch.func.vjp(mask, u)[:2]
        grads = scorer.pixels(masks.show(x, made, fill))  # t t ch *full: of each score at each picture
        own = torch.stack([g[t] for t, g in enumerate(grads)])
        (up,) = back(((x - fill) * own).sum(1).to(made))
        first, second = first * 0.9 + up * 0.1, second * 0.999 + up**2 * 0.001
        u = u + rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return torch.einsum("tc,c...->t...", u.softmax(1), act)
