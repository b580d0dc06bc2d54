"""A page: one drawing with its title, the colour bar, a caption, and the reason where a map is blank."""

from collections.abc import Sequence
from typing import TypedDict, Unpack

import numpy as np
from PIL import Image, ImageDraw

from camlucida.errors import did_you_mean
from camlucida.view.colour import paint
from camlucida.view.panel import PAPER, banner
from camlucida.view.sizes import letter
from camlucida.view.text import Font, font, height, write

_MARGIN, _GAP, _BAR = 16, 8, 12
_WIDEST_BAR = 320
_NARROWEST = 240  # a page holds a title and the ends of its bar, however small the drawing


class Text(TypedDict, total=False):
    """The words on a page: `title` above, `caption` below, a `note` across the drawing, and `top`.

    `top` is what the hot end of the colour bar stands for: "max" unless given. `bare` leaves all but the drawing and
    its note out, the colour bar too.
    """

    title: str
    caption: str
    note: str
    top: str
    bare: bool


def page(body: Image.Image, *, colours: str | None = None, signed: bool = False, **words: Unpack[Text]) -> Image.Image:
    """`body` on white, with the words of `Text` and the colour bar.

    >>> page(Image.new("RGB", (320, 100)), title="scan · Grad-CAM", caption="class 3").size
    (352, 227)
    """
    if unknown := words.keys() - Text.__annotations__.keys():
        raise TypeError(f"there is no argument {min(unknown)!r}.{did_you_mean(min(unknown), Text.__annotations__)}")
    wide = max(_NARROWEST, body.width)
    face = font(letter(wide // 2))
    if words.get("note"):
        body = body.copy()
        banner(body, (0, 0, *body.size), words["note"], face)
    if words.get("bare"):
        return body
    rows = [_line(words.get("title", ""), wide, face, 0.5), _centred(body, wide)]
    rows += [bar(min(wide, _WIDEST_BAR), words.get("top", "max"), signed, colours, face)]
    rows += [_line(words.get("caption", ""), wide, face)]
    return tiled([[row] for row in rows if row], _GAP, _MARGIN)


def bar(width: int, top: str, signed: bool, colours: str | None, face: Font) -> Image.Image:
    """A colour bar `width` pixels wide with what its ends stand for below it, on white.

    >>> bar(224, "max", False, None, font(16)).width
    224
    """
    cell = Image.new("RGB", (width, _BAR + _GAP + height(face)), PAPER)
    ends = np.linspace(-1 if signed else 0, 1, width, dtype=np.float32)
    cell.paste(Image.fromarray(paint(np.broadcast_to(ends, (_BAR, width)), colours, signed)), (0, 0))
    draw, third = ImageDraw.Draw(cell), width // 3
    told = [(0.0, f"−{top}"), (0.5, "0"), (1.0, f"+{top}")] if signed else [(0.0, "0"), (1.0, top)]
    for align, words in told:
        write(draw, (round(align * (width - third)), _BAR + _GAP // 2, third), words, face, align)
    return cell


def tiled(rows: Sequence[Sequence[Image.Image]], gutter: int = 4, margin: int = 0) -> Image.Image:
    """Pictures of any sizes in rows, on white: columns as wide, rows as high as their largest, all at top and left.

    >>> tiled([[Image.new("RGB", (4, 3)), Image.new("RGB", (5, 2))], [Image.new("RGB", (2, 2))]], 1).size
    (10, 6)
    """
    across = max(map(len, rows))
    widths = [max(row[j].width for row in rows if j < len(row)) for j in range(across)]
    heights = [max(cell.height for cell in row) for row in rows]
    whole = sum(widths) + gutter * (across - 1), sum(heights) + gutter * (len(rows) - 1)
    made = Image.new("RGB", (whole[0] + 2 * margin, whole[1] + 2 * margin), PAPER)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            left, top = sum(widths[:j]) + gutter * j, sum(heights[:i]) + gutter * i
            made.paste(cell, (left + margin, top + margin))
    return made


def _line(text: str, width: int, face: Font, align: float = 0.0) -> Image.Image | None:
    if not text:
        return None
    made = Image.new("RGB", (width, height(face)), PAPER)
    write(ImageDraw.Draw(made), (0, 0, width), text, face, align)
    return made


def _centred(body: Image.Image, width: int) -> Image.Image:
    if body.width >= width:
        return body
    made = Image.new("RGB", (width, body.height), PAPER)
    made.paste(body, ((width - body.width) // 2, 0))
    return made
