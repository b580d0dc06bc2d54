"""Marks on a picture: contours of a heat map, boxes with names, outlines of masks, tags, and the legend below."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from camlucida.errors import InputError
from camlucida.view.colour import Heat, plane, scale
from camlucida.view.overlay import check_sizes, rgb
from camlucida.view.panel import PAPER
from camlucida.view.regions import COLOURS, Colour
from camlucida.view.sizes import letter
from camlucida.view.text import INK, Font, clean, cut, font, height, write

Box = Sequence[float | int]
"""(left, top, right, bottom) in pixels; the pixel at the right and bottom is no longer inside."""

_HALO = 0.55  # how dark the seam beside a line is, so that it shows on any ground
_GAP = 8
_EDGE = (190, 190, 190)  # around a patch of the legend, which may be white


# ---------------------------------------------------------------------------------------------------------- contours


def contours(
    image: Image.Image,
    heat: Heat,
    levels: Sequence[float] = (0.5,),
    *,
    colours: Sequence[Colour] = (),
    signed: bool = False,
) -> Image.Image:
    """`image` with the lines along which `heat`, ``(h, w)`` of its size, has these values, smooth and with a dark seam.

    A line has the colour that its level has in the colour bar, or that of `colours`. What is NaN has no lines. Raises
    `InputError` where sizes differ, or there is not one colour for each level.

    >>> ramp = np.linspace(0, 1, 9, dtype=np.float32)[None].repeat(9, 0)
    >>> drawn = contours(Image.new("RGB", (9, 9), "white"), ramp, colours=[(255, 0, 0)])
    >>> drawn.getpixel((4, 4)), drawn.getpixel((8, 4))
    ((255, 0, 0), (255, 255, 255))
    """
    heat = plane(heat)
    check_sizes(image, heat)
    if colours and len(colours) != len(levels):
        raise InputError(f"Each level has a colour: got {len(levels)} levels and {len(colours)} colours.")
    made = rgb(image)
    for level, colour in zip(levels, colours or [_of(level, signed) for level in levels], strict=True):
        made = _drawn(made, _distance(heat, level), colour)
    return made


def outlines(
    image: Image.Image, masks: Sequence[NDArray[np.bool_]], *, colours: Sequence[Colour] = COLOURS
) -> Image.Image:
    """`image` with a line around each of `masks`, bool ``(h, w)`` of its size, in one colour after the other.

    >>> outlines(Image.new("RGB", (9, 9)), [np.eye(9, dtype=bool)]).size
    (9, 9)
    """
    made = rgb(image)
    for number, mask in enumerate(masks):
        check_sizes(image, np.asarray(mask, np.float32))
        made = _drawn(made, _distance(_softened(mask), 0.5), colours[number % len(colours)])
    return made


def _of(level: float, signed: bool) -> Colour:
    table = scale(signed=signed)
    at = (level + 1) / 2 if signed else level
    r, g, b = table[round(min(1.0, max(0.0, at)) * (len(table) - 1))].tolist()
    return r, g, b


def _distance(heat: Heat, level: float) -> Heat:
    """How far each pixel is from the line of `level`, in pixels: the difference over the slope."""
    padded = np.pad(heat.astype(np.float32), 1, mode="edge")  # np.gradient needs two pixels along each axis
    slope = np.hypot(*np.gradient(padded))[1:-1, 1:-1]
    away = np.abs(heat - np.float32(level))
    found: Heat = np.full(heat.shape, np.inf, np.float32)
    np.divide(away, slope, out=found, where=slope > 1e-6 * max(1, abs(level)))
    return found


def _softened(mask: NDArray[np.bool_]) -> Heat:
    """A mask whose edge is a slope of two pixels: its outline comes out smooth."""
    around = np.pad(mask.astype(np.float32), 1, mode="edge")
    down = around[:-2] + 2 * around[1:-1] + around[2:]
    soft: Heat = (down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]) / 16
    return soft


def _drawn(image: Image.Image, distance: Heat, colour: Colour) -> Image.Image:
    half = _thick(image) / 2
    for ink, reach, share in ((INK, half + 1, _HALO), (colour, half, 1.0)):
        cover = np.nan_to_num(np.clip(reach + 0.5 - distance, 0, 1)) * share
        image.paste(ink, (0, 0), Image.fromarray((cover * 255 + 0.5).astype(np.uint8)))
    return image


def _thick(image: Image.Image) -> int:
    return max(2, round(max(image.size) / 320))


# ------------------------------------------------------------------------------------------------------------- boxes


def boxes(
    image: Image.Image,
    places: Sequence[Box],
    labels: Sequence[str] = (),
    *,
    colours: Sequence[Colour] = COLOURS,
    dashed: bool = False,
) -> Image.Image:
    """`image` with a frame around each of `places` (left, top, right, bottom in pixels) and its label in a tag.

    Frames that reach beyond the picture are cut at its border. `dashed` tells a second kind of boxes from the first,
    true from predicted ones for instance. Raises `InputError` for a box that has no extent or is not finite, or where
    labels are too few or too many.

    >>> boxes(Image.new("RGB", (80, 60)), [(5, 5, 40, 50)], ["cat 0.93"]).size
    (80, 60)
    """
    if labels and (len(labels) != len(places) or isinstance(labels, str)):
        raise InputError(f"Each box has a label, or none has: got {len(places)} boxes and {len(labels)} labels.")
    made = rgb(image)
    draw = ImageDraw.Draw(made)
    tags = list[tuple[tuple[int, int, int, int], str, Colour]]()
    for number, place in enumerate(places):
        at, colour = _whole(place, made.size), colours[number % len(colours)]
        _frame(draw, at, _thick(made) + 1, INK, dashed)
        _frame(draw, at, _thick(made), colour, dashed)
        tags.append((at, labels[number] if labels else "", colour))
    for at, text, colour in tags:  # last, so that no frame crosses a name
        _tag(draw, at, text, colour)
    return made


def _whole(place: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    if len(place) != 4 or not np.isfinite(place).all() or place[0] >= place[2] or place[1] >= place[3]:
        raise InputError(f"A box is (left, top, right, bottom) with left < right and top < bottom; got {place}.")
    left, top, right, bottom = place
    x, x1 = (min(max(round(v), 0), size[0] - 1) for v in (left, right - 1))
    y, y1 = (min(max(round(v), 0), size[1] - 1) for v in (top, bottom - 1))
    return x, y, max(x, x1), max(y, y1)


def _frame(draw: ImageDraw.ImageDraw, at: tuple[int, int, int, int], thick: int, colour: Colour, dashed: bool) -> None:
    left, top, right, bottom = at
    if not dashed:
        draw.rectangle(at, outline=colour, width=thick)
        return
    dash = 4 * thick
    for start in range(left, right + 1, 2 * dash):
        for y in (top, bottom - thick + 1):
            draw.rectangle((start, y, min(start + dash, right), y + thick - 1), fill=colour)
    for start in range(top, bottom + 1, 2 * dash):
        for x in (left, right - thick + 1):
            draw.rectangle((x, start, x + thick - 1, min(start + dash, bottom)), fill=colour)


def _tag(draw: ImageDraw.ImageDraw, at: tuple[int, int, int, int], text: str, colour: Colour) -> None:
    """The name of a box on its colour: above the box where there is room, else inside; never beyond the picture."""
    wide, high = draw.im.size
    face = font(letter(wide // 2))
    text = cut(text, face, wide - _GAP)
    if not text:
        return
    room, line = int(face.getlength(text)) + _GAP, height(face) + 2
    left = max(0, min(at[0], wide - room))
    top = at[1] - line if at[1] >= line else min(at[1], max(0, high - line))
    draw.rectangle((left, top, left + room - 1, top + line - 1), fill=colour)
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 140
    draw.text((left + _GAP // 2, top), text, fill=PAPER if dark else INK, font=face)


# ------------------------------------------------------------------------------------------------------------- words


def tag(image: Image.Image, text: str, face: Font, at: tuple[float, float] = (0.0, 0.0)) -> Image.Image:
    """`image` with a few words in white with a dark seam; `at` (0, 0) is left and top, (0.5, 1) the middle below.

    >>> tag(Image.new("RGB", (60, 40)), "L", font(13), (1.0, 0.5)).size
    (60, 40)
    """
    made = rgb(image)
    text = cut(text, face, made.width - 4)
    room = made.width - 6 - face.getlength(text), made.height - 4 - height(face)
    where = 3 + at[0] * room[0], 2 + at[1] * room[1]
    ImageDraw.Draw(made).text(where, text, fill=PAPER, font=face, stroke_width=1, stroke_fill=INK)
    return made


def legend(image: Image.Image, entries: Sequence[tuple[Colour, str]]) -> Image.Image:
    """`image` on white, and below it what each colour stands for, as many to a line as there is room for.

    >>> legend(Image.new("RGB", (200, 100)), [((230, 159, 0), "true"), ((0, 114, 178), "predicted")]).size
    (232, 159)
    """
    face = font(letter(image.width // 2))
    line, wide = height(face), max(image.width, 160)
    rows, places = [0], list[tuple[int, int]]()
    for _, text in entries:
        room = min(wide, line + _GAP + int(face.getlength(clean(text))) + 2 * _GAP)
        if rows[-1] and rows[-1] + room > wide:
            rows.append(0)
        places.append((rows[-1], len(rows) - 1))
        rows[-1] += room
    margin = 2 * _GAP
    made = Image.new("RGB", (wide + 2 * margin, image.height + 2 * margin + _GAP + len(rows) * (line + 2)), PAPER)
    made.paste(rgb(image), (margin, margin))
    draw = ImageDraw.Draw(made)
    for (colour, text), (x, row) in zip(entries, places, strict=True):
        left, top = margin + x, margin + image.height + _GAP + row * (line + 2)
        draw.rectangle((left, top + 2, left + line - 4, top + line - 2), fill=colour, outline=_EDGE)
        write(draw, (left + line + _GAP // 2, top, wide - x - line), text, face)
    return made
