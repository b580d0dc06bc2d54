"""Views of a picture that show the same thing: what makes a small data set a large one.

Every random number comes from the generator that is passed in, so that a run can be taken up again with the same bits.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F

from camlucida.errors import InputError

Batch = Float[Tensor, "b c h w"]
Shares = Float[Tensor, "b k"]


@dataclass(frozen=True)
class Augment:
    """How far views may go: shares of the picture's area and its width over height in a view, degrees it is turned,
    strength of changes in brightness, contrast and colour, chances that a part is erased and that pictures are mixed.

    Raises: InputError for a value that makes no sense.

    >>> Augment(flip=0.0).turn
    12.0
    """

    area: tuple[float, float] = (0.25, 1.2)
    ratio: float = 1.5
    turn: float = 12.0
    flip: float = 0.5
    colour: float = 0.4
    erase: float = 0.25
    mix: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 16:
            raise InputError(f"area is the least and the largest share, above 0, at most 16; it is {self.area}.")
        if not (1 <= self.ratio <= 100 and 0 <= self.turn <= 180):
            raise InputError(f"ratio is 1 to 100 and turn 0 to 180 degrees; they are {self.ratio} and {self.turn}.")
        for name in ("flip", "colour", "erase", "mix"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a share, from 0 to 1; it is {getattr(self, name)}.")


def view(picture: UInt8[Tensor, "c h w"], size: int, how: Augment, g: Generator) -> Float[Tensor, "c size size"]:
    """One random rectangle of a picture, turned and mirrored, as ``size × size`` pixels in [0, 1].

    Where the rectangle reaches beyond the picture, the picture is mirrored at its edge.

    >>> view(torch.zeros(3, 20, 30, dtype=torch.uint8), 16, Augment(), Generator().manual_seed(0)).shape
    torch.Size([3, 16, 16])
    """
    _, height, width = picture.shape
    area, ratio, turn, flip, u, v = torch.rand(6, generator=g).tolist()
    share = math.sqrt(how.area[0] + area * (how.area[1] - how.area[0]))
    bent = how.ratio ** (ratio - 0.5)
    w, h = share * bent, share / bent  # in units of the picture's own sides
    angle = math.radians((2 * turn - 1) * how.turn)
    cos, sin = math.cos(angle), math.sin(angle)
    way = -1.0 if flip < how.flip else 1.0
    place = (2 * u - 1) * abs(1 - w), (2 * v - 1) * abs(1 - h)
    turned = [
        [way * w * cos, -h * sin * height / width, place[0]],
        [way * w * sin * width / height, h * cos, place[1]],
    ]
    grid = F.affine_grid(torch.tensor([turned]), [1, 1, size, size], align_corners=False)
    seen = F.grid_sample(picture[None].float().div_(255), grid, padding_mode="reflection", align_corners=False)
    return seen[0]


def disturb(x: Batch, how: Augment, g: Generator) -> Batch:
    """Brightness, contrast and colour of each picture changed, and a rectangle of some replaced by its mean colour.

    >>> disturb(torch.rand(2, 3, 8, 8), Augment(), Generator().manual_seed(0)).shape
    torch.Size([2, 3, 8, 8])
    """
    b, _, h, w = x.shape
    bright, contrast, colour = (1 + how.colour * (2 * torch.rand(3, b, 1, 1, 1, generator=g) - 1)).to(x.device)
    grey = x.mean(1, keepdim=True)
    x = grey + colour * (x - grey)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = ((x - mean) * contrast + mean * bright).clamp(0, 1)
    hit = torch.rand(b, generator=g) < how.erase
    inside = _boxes(0.05 + 0.2 * torch.rand(b, generator=g), (h, w), g) & hit[:, None, None]
    return torch.where(inside[:, None].to(x.device), x.mean((2, 3), keepdim=True), x)


def mix(x: Batch, y: Shares, how: Augment, g: Generator) -> tuple[Batch, Shares]:
    """With chance ``how.mix`` each picture of the batch is mixed with the one before it: half the times that is faded
    into it, half the times a rectangle of that is laid on it; the shares of the classes follow. [zhang2018, yun2019]

    >>> x, y = mix(torch.rand(2, 3, 8, 8), torch.eye(2), Augment(mix=1.0), Generator().manual_seed(0))
    >>> y.sum(1)
    tensor([1., 1.])
    """
    if float(torch.rand((), generator=g)) >= how.mix:
        return x, y
    b, _, h, w = x.shape
    if float(torch.rand((), generator=g)) < 0.5:
        share = 0.5 * torch.rand(b, generator=g).sqrt()
        part = share[:, None, None].expand(b, h, w)
    else:
        part = _boxes(0.6 * torch.rand(b, generator=g), (h, w), g).to(x.dtype)
        share = part.mean((1, 2))
    part, share = part[:, None].to(x.device), share[:, None].to(x.device)
    return x + part * (x.roll(1, 0) - x), y + share * (y.roll(1, 0) - y)


def _boxes(area: Float[Tensor, " b"], size: tuple[int, int], g: Generator) -> Tensor:
    """For each share of the area a rectangle of about that, anywhere, as a mask ``b h w``."""
    bent = 2 ** (torch.rand(len(area), generator=g) - 0.5)
    sides = (area.sqrt() * bent).clamp(max=1), (area.sqrt() / bent).clamp(max=1)
    spans = []
    for side, n in zip(sides, size, strict=True):
        start = torch.rand(len(area), generator=g) * (1 - side)
        at = (torch.arange(n) + 0.5) / n
        spans.append((at >= start[:, None]) & (at < (start + side)[:, None]))
    return spans[0][:, :, None] & spans[1][:, None, :]
