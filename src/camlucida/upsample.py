"""From a coarse map to the picture's own edges: the guided filter, with the picture as guide. [he2010, he2015]

Linear interpolation spreads a 7×7 map over the picture with no regard to what is there. In a window around each pixel
the guided filter writes the heat as a linear function of the colours, ``q = a·I + b``: where heat and colours change
together, the heat gets the picture's edges. But the windows also blur, so `guided` takes the filter's detail alone, the
heat over its own mean nearby, and gives it to the interpolated map: where that is zero, it stays zero.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from camlucida.core.explanation import Explanation
from camlucida.errors import InputError

_WORK = 100_000  # pixels of a guide at which a and b are computed; those of a larger one are interpolated
Heat = Float[Tensor, "h w"]
Guide = Float[Tensor, "c h w"]


def _mean(x: Float[Tensor, "n h w"], radius: int) -> Float[Tensor, "n h w"]:
    """The mean over the square of ``2·radius + 1`` pixels around each, what lies outside the picture left out."""
    for side, pad in (((1, 2 * radius + 1), (0, radius)), ((2 * radius + 1, 1), (radius, 0))):
        x = torch.nn.functional.avg_pool2d(x[None], side, 1, pad, count_include_pad=False)[0]
    return x


def guided_filter(heat: Heat, guide: Guide, radius: int, eps: float = 1e-4) -> Heat:
    """``heat`` with the edges of ``guide``: ``q = ⟨a⟩·I + ⟨b⟩``, means over the windows that hold a pixel.

    In each window ``a = (Σ + eps)⁻¹ cov(I, p)``, ``b = ⟨p⟩ − a·⟨I⟩``, ``Σ`` the covariance of the guide's channels and
    ``eps`` the variance below which a window counts as flat, for a guide in [0, 1]. Nothing passes the smallest and
    largest heat within two windows. Shapes ``h w`` and ``c h w`` → ``h w``. [he2010]

    Raises: InputError where the sizes differ, or the window has no width.

    >>> guide = torch.zeros(1, 8, 8)
    >>> guide[..., 4:] = 1.0
    >>> blurred = torch.linspace(0, 1, 8).expand(8, 8)
    >>> guided_filter(blurred, guide, 2)[0].diff().argmax().item()  # the step of the guide
    3
    """
    if heat.shape != guide.shape[1:] or radius < 1 or eps <= 0:
        raise InputError(
            "a guided filter takes a map and a guide of one size, a radius of at least 1 and eps above 0; "
            f"got {tuple(heat.shape)}, {tuple(guide.shape)}, {radius} and {eps}."
        )
    a, b = _lines(heat, guide, radius, eps)
    return _within((_mean(a, radius) * guide).sum(0) + _mean(b[None], radius)[0], heat, 2 * radius)


def _lines(heat: Heat, guide: Guide, radius: int, eps: float) -> tuple[Guide, Heat]:
    """``a`` and ``b`` of the window around each pixel."""
    c = len(guide)
    mean, p = _mean(guide, radius), _mean(heat[None], radius)[0]
    pairs = _mean((guide[:, None] * guide[None]).flatten(0, 1), radius).unflatten(0, (c, c)) - mean[:, None] * mean
    joint = _mean(guide * heat, radius) - mean * p
    spread = pairs.movedim((0, 1), (-2, -1)) + eps * torch.eye(c, dtype=guide.dtype, device=guide.device)
    a = torch.linalg.solve(spread, joint.movedim(0, -1)).movedim(-1, 0)
    return a, p - (a * mean).sum(0)


def _within(found: Heat, heat: Heat, radius: int) -> Heat:
    """No more, and no less, than there was heat nearby: a line through a window can overshoot."""

    def largest(x: Heat) -> Heat:
        for side in ((1, 2 * radius + 1), (2 * radius + 1, 1)):
            x = torch.nn.functional.max_pool2d(x[None, None], side, 1, tuple(n // 2 for n in side))[0, 0]
        return x

    return torch.minimum(torch.maximum(found, -largest(-heat)), largest(heat))


def guided(
    e: Explanation, i: int = 0, *, radius: int | None = None, eps: float = 1e-4, signed: bool = False
) -> Float[Tensor, "height width"]:
    """`Explanation.heatmap` of picture ``i`` with the picture's edges; same range, same size, zero where that is zero.

    ``p · q / ⟨q⟩``, with ``p`` the heat, ``q`` its `guided_filter` and ``⟨·⟩`` the mean over a window; positive and
    negative heat each by itself. ``radius``, in pixels of the picture, is two cells of the map unless given. Pictures
    of more than 0.1 Mpx are filtered at a smaller size and the lines drawn at full size. [he2010, he2015]

    Raises: InputError where the input is no picture; as `guided_filter`.

    >>> import camlucida as cl
    >>> parts = torch.nn.Conv2d(3, 4, 3, stride=4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(256, 5)
    >>> guided(cl.explain(torch.nn.Sequential(*parts), torch.rand(1, 3, 32, 32), target=2, layer="1")).shape
    torch.Size([32, 32])
    """
    guide = torch.from_numpy(np.array(e.pictures.image(i).convert("RGB"))).movedim(-1, 0)
    heat, seen = e.heatmap(i, signed=signed), e.seen(i)
    rows, columns = (torch.nonzero(seen.any(axis))[:, 0].tolist() for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)  # what the model saw is a rectangle
    inside, colours = heat[box], guide[:, box[0], box[1]].to(heat) / 255
    if radius is None:
        radius = max(1, round(2 * max(n / m for n, m in zip(inside.shape, e.map.shape[1:], strict=True))))
    found = torch.zeros_like(heat)
    for sign in (1, -1) if signed else (1,):
        found[box] += sign * _detailed((sign * inside).relu(), colours, radius, eps)
    return found


def _detailed(heat: Heat, guide: Guide, radius: int, eps: float) -> Heat:
    """Heat of one sign times the detail that the guided filter finds in it."""
    step = math.ceil(math.sqrt(heat.numel() / _WORK))
    if step == 1:
        filtered = guided_filter(heat, guide, radius, eps)
    else:
        size = math.ceil(heat.shape[0] / step), math.ceil(heat.shape[1] / step)
        small = torch.nn.functional.adaptive_avg_pool2d(torch.cat([heat[None], guide])[None], size)[0]
        near = max(1, round(radius / step))
        a, b = _lines(small[0], small[1:], near, eps)
        lines = _mean(torch.cat([a, b[None]]), near)
        wide = torch.nn.functional.interpolate(lines[None], heat.shape, mode="bilinear", align_corners=False)[0]
        filtered = _within((wide[:-1] * guide).sum(0) + wide[-1], heat, 2 * radius)
    around = _mean(filtered[None], radius)[0]
    return _within(torch.where(around > 0, heat * filtered / around, 0), heat, radius)
