"""Maps that know nothing of the model: the controls that a metric must rank below every method worth its cost.

A method that does no better than these has shown nothing: objects are near the middle of photos, their edges are where
edges are, and even noise finds large ones.
"""

from hashlib import blake2b

import torch
from jaxtyping import Float
from torch import Tensor

from camlucida.errors import MethodError
from camlucida.registry import register
from camlucida.types import Act, Map, Scorer


@register(
    "random",
    title="random map",
    paper="hooker2019",
    formula="M(p) even in [0, 1), drawn from the picture's own hash",
    needs="model",
    class_agnostic=True,
    cost="1",
    insensitive="everything but the picture: the class, every weight of the model",
)
def random(scorer: Scorer, *, seed: int = 0) -> Float[Tensor, "t *space"]:
    """Noise, the same whenever the same picture is asked about: alone, in a batch, in any precision, on any device.

    ``M(p)`` even in [0, 1), drawn from a hash of the picture ``ch *full`` and ``seed``; one map for all targets. Shapes
    ``b c *space`` → ``b *space``; no units. [hooker2019]

    >>> import camlucida as cl
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    >>> x = torch.rand(2, 1, 6, 6)
    >>> both, one = (cl.explain(net, x[i:], target=0, method="random", layer="0").map for i in (0, 1))
    >>> torch.equal(both[1], one[0]), torch.equal(both[0], both[1])
    (True, False)
    """
    if not -(2**127) <= seed < 2**127:
        raise MethodError("random map: seed is a whole number of at most 127 bits.")
    # Rounded first: the picture of a half-precision model is the same picture.
    bits = scorer.x.detach().float().bfloat16().contiguous().view(torch.int16).cpu().numpy().tobytes()
    digest = blake2b(bits, digest_size=7, salt=seed.to_bytes(16, "little", signed=True)).digest()
    draw = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    drawn = torch.rand(scorer.act.shape[1:], generator=draw, dtype=torch.float64)
    return drawn.to(scorer.act).expand(len(scorer.base), *drawn.shape)


@register(
    "centre",
    title="centre",
    paper="zhang2016",
    formula="exp(−½ Σ_d ((p_d − centre_d) / (s · side_d))²),  s = ¼",
    needs="activation",
    class_agnostic=True,
    cost="1",
    deviations="the paper points at the middle; a bell around it gives every place its rank",
    insensitive="everything: the picture, the class, every weight of the model",
)
def centre(act: Act, *, spread: float = 0.25) -> Map:
    """A bell around the middle: where photographers put what they photograph.

    ``M(p) = exp(−½ Σ_d ((p_d − centre_d) / (s · side_d))²)``, ``s`` the ``spread`` in sides. Shapes ``b c *space`` →
    ``b *space``; no units. [zhang2016]

    Raises: MethodError for a spread that is not positive.

    >>> centre(torch.zeros(1, 2, 3, dtype=torch.float64)).round(decimals=3).tolist()
    [[0.411, 1.0, 0.411]]
    """
    if not spread > 0:
        raise MethodError(f"centre: spread is the width of the bell in sides of the picture, above 0; got {spread}.")
    made = torch.ones(act.shape[2:], dtype=torch.float64)
    for axis, side in enumerate(act.shape[2:]):
        off = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / (spread * side)
        made = made * (-off.square() / 2).exp().reshape(side, *(1,) * (made.dim() - axis - 1))
    return made.to(act).expand(len(act), *made.shape)


@register(
    "uniform",
    title="uniform map",
    paper="poppi2021",
    formula="M(p) = 1",
    needs="activation",
    class_agnostic=True,
    cost="1",
    insensitive="everything: the picture, the class, every weight of the model",
)
def uniform(act: Act) -> Map:
    """The same everywhere: a map that says nothing, and wins where a metric can be won so.

    ``M(p) = 1``; shapes ``b c *space`` → ``b *space``; no units. Its status is ``constant``. [poppi2021]

    >>> uniform(torch.zeros(1, 2, 3)).tolist()
    [[1.0, 1.0, 1.0]]
    """
    return torch.ones_like(act[:, 0])


@register(
    "edges",
    title="edges",
    paper="adebayo2018",
    formula="|∇ ⟨x⟩_channels|",
    needs="activation",
    at="input",
    class_agnostic=True,
    cost="1",
    deviations=(
        "the paper's edge detector is not told; brightness is the mean of the input's channels as the model gets them, "
        "and its gradient is made of central differences, one-sided at the border"
    ),
    insensitive="everything but the picture: the class, every weight of the model",
)
def edges(act: Act) -> Map:
    """Where the picture's brightness changes: what people take for an explanation when it is a picture of the picture.

    ``M = sqrt(Σ_d (∂B/∂p_d)²)``, ``B`` the mean over channels, by central differences; shapes ``b c *space`` →
    ``b *space``; brightness a pixel. [adebayo2018]

    >>> edges(torch.tensor([[[0.0, 0.0, 4.0, 4.0]]])).tolist()
    [[0.0, 2.0, 2.0, 0.0]]
    """
    bright = act.mean(1)
    steep = torch.zeros_like(bright)
    for axis in (d for d, side in enumerate(bright.shape) if d > 0 and side > 1):
        steep = torch.hypot(steep, torch.gradient(bright, dim=axis)[0])
    return steep
