"""The figure of the Grad-CAM article: the picture, its heat map and the two together, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

import numpy as np
from PIL import Image, ImageDraw

from camlucida.errors import InputError, did_you_mean
from camlucida.view.colour import Heat, paint, plane
from camlucida.view.overlay import check_sizes, heatmap, overlay, rgb
from camlucida.view.sizes import Size, fit, fit_heat, letter, shown
from camlucida.view.text import INK, Font, font, height, wrap, write

PAPER = (255, 255, 255)

_MARGIN, _GUTTER = 16, 12
_NARROWEST = 160  # a column holds its title and the ends of the colour bar, however thin the picture
_BAR, _GAP = 10, 6
_EDGE = (190, 190, 190)


class Words(TypedDict, total=False):
    """The words on a panel: three `titles`, a `caption` under everything, a `note` across both maps, and `top`.

    `top` is what the hot end of the colour bar stands for: "max" unless given, or a number such as "3.21".
    """

    titles: Sequence[str]
    caption: str
    note: str
    top: str


def panel(
    image: Image.Image,
    heat: Heat,
    *,
    colours: str | None = None,
    signed: bool = False,
    side: int = 640,
    **words: Unpack[Words],
) -> Image.Image:
    """Picture · heat map with its colour bar · overlay, side by side, as an RGB picture.

    `heat` is float ``(h, w)`` of the picture's size, in [0, 1], or in [−1, 1] when `signed`; NaN is marked as never
    seen. Pictures longer than `side` pixels are shrunk to it, those shorter than half of it are enlarged a whole
    number of times. The `words` are those of `Words`; what is too long ends in "…". Raises `InputError` where the
    sizes differ, for an unknown map, or for other than three titles.

    >>> panel(Image.new("RGB", (320, 200)), np.zeros((200, 320)), caption="tabby cat 0.87 · Grad-CAM").size
    (1016, 293)
    """
    heat = plane(heat)
    check_sizes(image, heat)
    plan = _plan(shown(image.size, side), words)
    picture, heat = fit(rgb(image), plan.size), fit_heat(heat, plan.size)
    hot = heatmap(heat, colours=colours, signed=signed)
    both = overlay(picture, heat, colours=colours, signed=signed)
    page = Image.new("RGB", plan.whole, PAPER)
    for left, cell in zip(plan.lefts, (picture, hot, both), strict=True):
        page.paste(cell, (left + plan.inset, plan.top + (plan.tall - plan.size[1]) // 2))
    page.paste(_bar(plan.column, colours, signed), (plan.lefts[1], plan.bar))
    _write_words(page, plan, words, signed)
    return page


@dataclass(frozen=True)
class _Plan:
    """Where things are on the page: three columns of `column` pixels, each with a picture of `size` in its middle."""

    size: Size
    face: Font
    titled: bool
    captioned: bool

    @property
    def column(self) -> int:
        return max(_NARROWEST, self.size[0])

    @property
    def inset(self) -> int:
        return (self.column - self.size[0]) // 2

    @property
    def lefts(self) -> tuple[int, ...]:
        return tuple(_MARGIN + place * (self.column + _GUTTER) for place in range(3))

    @property
    def line(self) -> int:
        return height(self.face)

    @property
    def top(self) -> int:
        return _MARGIN + self.titled * (self.line + _GAP)

    @property
    def tall(self) -> int:
        return max(self.size[1], self.line + 2 * _GAP)  # room for a note, however flat the picture

    @property
    def bar(self) -> int:
        return self.top + self.tall + _GAP

    @property
    def ends(self) -> int:
        return self.bar + _BAR + _GAP // 2

    @property
    def caption(self) -> int:
        return self.ends + self.line + _GAP

    @property
    def whole(self) -> Size:
        bottom = self.caption + self.line if self.captioned else self.ends + self.line
        return self.lefts[2] + self.column + _MARGIN, bottom + _MARGIN


def _plan(size: Size, words: Words) -> _Plan:
    unknown = words.keys() - Words.__annotations__.keys()
    if unknown:
        raise TypeError(f"panel() has no argument {min(unknown)!r}.{did_you_mean(min(unknown), Words.__annotations__)}")
    titles = words.get("titles", ("", "", ""))
    if len(titles) != 3 or isinstance(titles, str):
        raise InputError(f"A panel has three titles, for picture, heat map and overlay; got {titles!r}.")
    face = font(letter(max(_NARROWEST, size[0])))
    return _Plan(size, face, any(titles), bool(words.get("caption")))


def _bar(width: int, colours: str | None, signed: bool) -> Image.Image:
    values = np.linspace(-1 if signed else 0, 1, width, dtype=np.float32)
    bar = Image.fromarray(paint(np.broadcast_to(values, (_BAR, width)), colours, signed))
    ImageDraw.Draw(bar).rectangle((0, 0, width - 1, _BAR - 1), outline=_EDGE)
    return bar


def _write_words(page: Image.Image, plan: _Plan, words: Words, signed: bool) -> None:
    draw = ImageDraw.Draw(page)
    for left, title in zip(plan.lefts, words.get("titles", ("", "", "")), strict=True):
        write(draw, (left, _MARGIN, plan.column), title, plan.face, align=0.5)
    _write_ends(draw, plan, words.get("top", "max"), signed)
    width = plan.whole[0] - 2 * _MARGIN
    write(draw, (_MARGIN, plan.caption, width), words.get("caption", ""), plan.face)
    for left in plan.lefts[1:]:
        banner(page, (left, plan.top, plan.column, plan.tall), words.get("note", ""), plan.face)


def _write_ends(draw: ImageDraw.ImageDraw, plan: _Plan, top: str, signed: bool) -> None:
    third = (plan.column - 2 * _GAP) // 3
    labels = [(0.0, f"−{top}"), (0.5, "0"), (1.0, f"+{top}")] if signed else [(0.0, "0"), (1.0, top)]
    for align, label in labels:
        left = plan.lefts[1] + round(align * (plan.column - third))
        write(draw, (left, plan.ends, third), label, plan.face, align)


def banner(page: Image.Image, box: tuple[int, int, int, int], note: str, face: Font) -> None:
    """Write `note` in white on a dark band across the middle of `box` (left, top, width, height)."""
    left, top, wide, high = box
    line = height(face)
    lines = wrap(note, face, wide - 2 * _GAP, max(1, (high - 2 * _GAP) // line)) if note else []
    if not lines:
        return
    deep = len(lines) * line + 2 * _GAP
    start = top + (high - deep) // 2
    band = page.crop((left, start, left + wide, start + deep))
    page.paste(Image.blend(band, Image.new("RGB", band.size, INK), 0.8), (left, start))
    draw = ImageDraw.Draw(page)
    for row, words in enumerate(lines):
        where = (left + (wide - face.getlength(words)) / 2, start + _GAP + row * line)
        draw.text(where, words, fill=PAPER, font=face)
