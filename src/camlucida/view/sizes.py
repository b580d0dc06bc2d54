"""How large things are shown: pictures shrunk smoothly or enlarged pixel by pixel, and letters to match."""

import numpy as np
from PIL import Image

from camlucida.errors import InputError
from camlucida.view.colour import Heat

Size = tuple[int, int]  # width, height: Pillow's order


def shown(size: Size, side: int) -> Size:
    """The `size` (width, height) at which a picture is shown: at most `side`, and small ones whole times larger.

    Raises `InputError` unless `side` and `size` are positive.

    >>> shown((3000, 200), 640), shown((32, 32), 640), shown((500, 375), 640)
    ((640, 43), (320, 320), (500, 375))
    """
    longest = max(size)
    if side < 1 or min(size) < 1:
        raise InputError(f"Nothing to show: a picture of {size[0]} × {size[1]} pixels, with side={side}.")
    if longest > side:
        return max(1, round(size[0] * side / longest)), max(1, round(size[1] * side / longest))
    times = max(1, side // 2 // longest)
    return size[0] * times, size[1] * times


def fit(picture: Image.Image, size: Size) -> Image.Image:
    """`picture` at `size`: smooth when it shrinks, in hard-edged pixels when it grows."""
    if picture.size == size:
        return picture
    if size[0] >= picture.width and size[1] >= picture.height:
        return picture.resize(size, Image.Resampling.NEAREST)
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def fit_heat(heat: Heat, size: Size) -> Heat:
    """`heat`, float ``(h, w)``, at `size`; NaN neither grows nor bleeds: each pixel is the mean of what was seen.

    A pixel of which more than half was never seen is NaN.

    >>> fit_heat(np.array([[1.0, 1.0, np.nan, np.nan]]), (2, 1)).tolist()
    [[1.0, nan]]
    """
    if heat.shape == size[::-1]:
        return heat
    seen = ~np.isnan(heat)
    if seen.all():
        return _resize(heat, size)
    share = _resize(seen, size)
    total = _resize(np.where(seen, heat, 0), size)
    mean = np.full_like(total, np.nan)
    return np.divide(total, share, out=mean, where=share >= 0.5)


def letter(width: int) -> int:
    """The height of letters, in pixels, that goes with a column `width` pixels wide.

    >>> letter(160), letter(320), letter(640)
    (13, 14, 20)
    """
    return min(28, max(13, width // 50 + 8))


def _resize(values: Heat | np.ndarray[tuple[int, ...], np.dtype[np.bool_]], size: Size) -> Heat:
    smaller = size[0] < values.shape[1] or size[1] < values.shape[0]
    way = Image.Resampling.BOX if smaller else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, way))
