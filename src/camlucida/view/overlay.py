"""A heat map laid over its picture, with what the model never saw marked so that nobody takes it for "no evidence"."""

from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from camlucida.errors import InputError, did_you_mean
from camlucida.view.colour import UNSEEN, Heat, paint, plane

Mask = NDArray[np.bool_]
Blend = Literal["uniform", "evidence"]

_ALPHA: dict[Blend, float] = {"uniform": 0.5, "evidence": 0.8}
_STRIPES = 40  # stripes along the longer side: few enough to read as a pattern, whatever the size


def overlay(
    image: Image.Image,
    heat: Heat,
    *,
    alpha: float | None = None,
    colours: str | None = None,
    signed: bool = False,
    blend: Blend | None = None,
) -> Image.Image:
    """The picture under its heat map, ``(1 − a) · picture + a · colour``, as an RGB picture of the same size.

    `heat` is float ``(h, w)`` in [0, 1], or in [−1, 1] when `signed`. ``a = alpha`` everywhere with ``"uniform"``, as
    in the Grad-CAM article, and ``a = alpha · |heat|`` with ``"evidence"``, which leaves the photo clean where there
    is no evidence. Left out, `blend` is ``"uniform"``, but ``"evidence"`` when `signed`, since the pale middle of a
    diverging map would fog the photo; `alpha` is 0.5, or 0.8 by evidence. Where `heat` is NaN, which stands for "the
    model never saw this", the picture turns grey, dark and striped. Raises `InputError` where the sizes differ, or
    for an unknown map, blend or alpha.

    >>> overlay(Image.new("RGB", (4, 3)), np.zeros((3, 4), np.float32)).size
    (4, 3)
    """
    heat = plane(heat)
    check_sizes(image, heat)
    blend = blend or ("evidence" if signed else "uniform")
    alpha = _alpha(alpha, blend)
    picture = rgb(image)
    tint = Image.fromarray(paint(heat, colours, signed))
    if blend == "uniform":
        mixed = Image.blend(picture, tint, alpha)
    else:
        mixed = Image.composite(tint, picture, _opacity(np.abs(heat) if signed else heat, alpha))
    return hatch(mixed, picture, np.isnan(heat))


def heatmap(heat: Heat, *, colours: str | None = None, signed: bool = False) -> Image.Image:
    """The heat map alone, float ``(h, w)``, as an RGB picture; NaN is grey and striped, as in `overlay`.

    Raises `InputError` for an unknown map or for an array that has no pixels.

    >>> heatmap(np.ones((3, 4), np.float32), colours="gray").getpixel((0, 0))
    (255, 255, 255)
    """
    heat = plane(heat)
    tint = Image.fromarray(paint(heat, colours, signed))
    return hatch(tint, Image.new("RGB", tint.size, UNSEEN), np.isnan(heat))


def hatch(picture: Image.Image, under: Image.Image, unseen: Mask) -> Image.Image:
    """`picture` with the pixels of `unseen`, bool ``(h, w)``, taken from `under`: grey, dimmed, in diagonal stripes.

    >>> hatch(Image.new("RGB", (2, 2), "red"), Image.new("L", (2, 2)), np.eye(2, dtype=bool)).getpixel((1, 0))
    (255, 0, 0)
    """
    if not unseen.any():
        return picture
    dim = np.asarray(under.convert("L").point([level // 2 for level in range(256)]))
    # added, not multiplied, so that the stripes show on a black picture too
    shade = Image.fromarray(dim + _stripes(*unseen.shape)).convert("RGB")
    return Image.composite(shade, picture, Image.fromarray(unseen * np.uint8(255)))


def rgb(image: Image.Image) -> Image.Image:
    """`image` in RGB, without what came along in the file: an EXIF turn or a colour profile would apply twice."""
    if image.mode == "P" and image.has_transparency_data:
        image = image.convert("RGBA")  # the palette's own transparency cannot go to RGB in one step
    picture = image.copy() if image.mode == "RGB" else image.convert("RGB")
    picture.info = {}
    return picture


def check_sizes(image: Image.Image, heat: Heat) -> None:
    """Raise `InputError`, with both sizes, unless `heat`, ``(h, w)``, has the size of `image`."""
    height, width = heat.shape
    if image.size != (width, height):
        seen = f"the picture is {image.width} × {image.height} pixels, the heat map {width} × {height}"
        raise InputError(f"A heat map must have its picture's size: {seen} (width × height). Resize the map first.")


def _alpha(alpha: float | None, blend: Blend) -> float:
    if blend not in _ALPHA:
        raise InputError(f"There is no blend {blend!r}.{did_you_mean(str(blend), _ALPHA)}")
    alpha = _ALPHA[blend] if alpha is None else alpha
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is how much of the colour shows, from 0 to 1; got {alpha}.")
    return alpha


def _opacity(evidence: Heat, alpha: float) -> Image.Image:
    strength = np.fmin(np.fmax(evidence, 0), 1)
    return Image.fromarray((strength * (255 * alpha) + 0.5).astype(np.uint8))


def _stripes(height: int, width: int) -> NDArray[np.uint8]:
    """Light to add for diagonal stripes, ``(height, width)``: row y is one line shifted by y, a view of no cost."""
    period = max(6, max(height, width) // _STRIPES)
    line = np.where(np.arange(height + width - 1) % period < period // 2, 75, 20)
    return sliding_window_view(line.astype(np.uint8), width)
