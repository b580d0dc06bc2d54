"""Several maps in one picture: each in its own colour where it is the strongest, numbered, with a legend of names."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from camlucida.errors import InputError
from camlucida.view.overlay import hatch, rgb
from camlucida.view.panel import PAPER
from camlucida.view.sizes import Size, fit, fit_heat, letter, shown
from camlucida.view.text import INK, Font, cut, font, height, write

Stack = NDArray[np.floating]
Colour = tuple[int, int, int]

# The first seven are Okabe and Ito's, which colour-blind eyes tell apart, too; the others are what is left.
COLOURS: tuple[Colour, ...] = (
    (230, 159, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233), (240, 228, 66),
    (120, 60, 160), (120, 90, 50), (30, 30, 30), (150, 200, 60), (255, 130, 130),
)  # fmt: skip

_MARGIN, _GAP = 16, 8
_EVIDENCE = 0.75  # how much of the colour shows where a map is 1
_WORTH = 0.15  # a map that nowhere reaches this in the picture is not there, and gets no number


def regions(image: Image.Image, heats: Stack, labels: Sequence[str], *, side: int = 640) -> Image.Image:
    """The picture under ``k`` maps: each pixel has the colour of its strongest map, as opaque as that is strong.

    `heats` is float ``(k, h, w)`` of the picture's size, in [0, 1]; NaN is marked as never seen. The number of a map
    stands where it is strongest, and in the legend below with its label. Raises `InputError` where sizes or counts
    differ, or for more maps than there are colours.

    >>> regions(Image.new("RGB", (320, 200)), np.zeros((2, 200, 320)), ["wing", "sky"]).size
    (352, 284)
    """
    _check(image, heats, labels)
    plan = _Plan(shown(image.size, side), len(labels))
    small = np.stack([fit_heat(np.asarray(heat, np.float32), plan.size) for heat in heats])
    painted = paint_regions(fit(rgb(image), plan.size), small)
    page = Image.new("RGB", plan.whole, PAPER)
    page.paste(painted, (_MARGIN, _MARGIN))
    draw = ImageDraw.Draw(page)
    for number, heat in enumerate(small):
        _mark(draw, number, heat, small, plan)
        _entry(draw, number, labels[number], plan)
    return page


def paint_regions(picture: Image.Image, heats: Stack) -> Image.Image:
    """`picture` with each pixel in the colour of its strongest map, blended by that map's value; NaN is hatched.

    >>> paint_regions(Image.new("RGB", (1, 1)), np.array([[[0.0]], [[1.0]]])).getpixel((0, 0))
    (0, 85, 133)
    """
    unseen = np.asarray(np.isnan(heats).any(0))
    values = np.clip(np.nan_to_num(heats), 0, 1)
    tint = np.asarray(COLOURS, np.uint8)[values.argmax(0)]
    strength = Image.fromarray((values.max(0) * _EVIDENCE * 255 + 0.5).astype(np.uint8))
    return hatch(Image.composite(Image.fromarray(tint), picture, strength), picture, unseen)


def strongest(heat: Stack, heats: Stack) -> tuple[int, int] | None:
    """Where the number of a map goes, as (x, y): its peak among the pixels it owns; None where that is next to nothing.

    >>> strongest(np.array([[0.0, 0.6, 0.9]]), np.array([[[0.0, 0.6, 0.9]], [[0.0, 0.5, 1.0]]]))
    (1, 0)
    """
    values = np.nan_to_num(heat)
    owned = np.where(values >= np.nan_to_num(heats).max(0), values, 0)
    if owned.max(initial=0) < _WORTH:
        return None
    y, x = np.unravel_index(int(owned.argmax()), owned.shape)
    return int(x), int(y)


@dataclass(frozen=True)
class _Plan:
    """Where things are on the page: the picture of `size`, and under it one line for each of `count` maps."""

    size: Size
    count: int

    @property
    def face(self) -> Font:
        return font(letter(self.size[0]))

    @property
    def line(self) -> int:
        return height(self.face) + _GAP // 2

    @property
    def wide(self) -> int:
        return max(self.size[0], 160)

    @property
    def whole(self) -> Size:
        return self.wide + 2 * _MARGIN, self.size[1] + 2 * _MARGIN + _GAP + self.count * self.line


def _check(image: Image.Image, heats: Stack, labels: Sequence[str]) -> None:
    if heats.ndim != 3 or len(heats) != len(labels) or not 0 < len(heats) <= len(COLOURS):
        raise InputError(
            f"Regions take 1 to {len(COLOURS)} maps, (k, h, w), with a label each; got an array of shape "
            f"{heats.shape} and {len(labels)} labels."
        )
    if image.size != heats.shape[:0:-1]:
        seen = f"the picture is {image.width} × {image.height} pixels, the maps {heats.shape[2]} × {heats.shape[1]}"
        raise InputError(f"Maps must have their picture's size: {seen} (width × height). Resize them first.")


def _mark(draw: ImageDraw.ImageDraw, number: int, heat: Stack, heats: Stack, plan: _Plan) -> None:
    at = strongest(heat, heats)
    if at is None:
        return
    reach = plan.line // 2 + 2
    width, high = plan.size
    x = _MARGIN + min(max(at[0], reach), max(reach, width - reach))  # whole, however near the border
    y = _MARGIN + min(max(at[1], reach), max(reach, high - reach))
    draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=PAPER, outline=COLOURS[number], width=3)
    draw.text((x, y), str(number + 1), fill=INK, font=plan.face, anchor="mm")


def _entry(draw: ImageDraw.ImageDraw, number: int, label: str, plan: _Plan) -> None:
    top = _MARGIN + plan.size[1] + _GAP + number * plan.line
    draw.rectangle((_MARGIN, top + 2, _MARGIN + plan.line - 6, top + plan.line - 4), fill=COLOURS[number])
    left = _MARGIN + plan.line
    room = plan.wide + _MARGIN - left
    write(draw, (left, top, room), cut(f"{number + 1}  {label}", plan.face, room), plan.face)
