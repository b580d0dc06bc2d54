"""A labelled grid of pictures: methods down, pictures across; and the maps of several classes on one scale."""

from collections.abc import Iterable, Sequence
from typing import TypedDict, Unpack

from PIL import Image, ImageDraw

from camlucida.errors import InputError
from camlucida.view.colour import Heat
from camlucida.view.overlay import heatmap, overlay, rgb
from camlucida.view.page import bar
from camlucida.view.panel import PAPER
from camlucida.view.sizes import fit, letter
from camlucida.view.text import Font, clean, font, height, write

Cell = Image.Image | None
Grid = Sequence[Sequence[Cell]]
Spans = list[tuple[int, int]]  # (start, length) of each row or column, in pixels

_MARGIN, _GUTTER, _GAP = 16, 8, 8
_EMPTY = (236, 236, 236)


class Foot(TypedDict, total=False):
    """The words at the foot of a sheet: a `caption`, and `top`, what the hot end of the bar stands for ("max")."""

    caption: str
    top: str


def montage(
    cells: Grid,
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    side: int = 224,
) -> Image.Image:
    """A grid of pictures, each fitted into `side` × `side` pixels, with its labels, as an RGB picture.

    Rows and columns are as high and as wide as their largest picture; None, and what a short row lacks, is an empty
    light-grey place. Labels longer than `side` pixels end in "…". Raises `InputError` for a grid with no places, for
    a `side` below 1, or where there is not one label for each row or column.

    >>> montage([[Image.new("RGB", (8, 8)), None]], side=100).size
    (240, 132)
    """
    grid = _filled(cells, side)
    face = font(letter(2 * side))
    across = _labels("column", column_labels, len(grid[0]))
    down = _labels("row", row_labels, len(grid))
    left = _MARGIN + (_widest(down, face, side) + _GAP if row_labels else 0)
    top = _MARGIN + (height(face) + _GAP if column_labels else 0)
    floors = [_widest([label], face, side) for label in across]
    columns = _spans([_extent(place, 0, side) for place in zip(*grid, strict=True)], left, floors)
    rows = _spans([_extent(row, 1, side) for row in grid], top, [height(face)] * len(grid))
    page = Image.new("RGB", (sum(columns[-1]) + _MARGIN, sum(rows[-1]) + _MARGIN), PAPER)
    _paste(page, grid, rows, columns)
    draw = ImageDraw.Draw(page)
    for (start, length), label in zip(columns, across, strict=True):
        write(draw, (start, _MARGIN, length), label, face, align=0.5)
    for (start, length), label in zip(rows, down, strict=True):
        write(draw, (_MARGIN, start + (length - height(face)) // 2, left - _GAP - _MARGIN), label, face)
    return page


def class_map_sheet(
    image: Image.Image,
    heats: Sequence[Heat],
    labels: Sequence[str],
    *,
    signed: bool = False,
    side: int = 224,
    **words: Unpack[Foot],
) -> Image.Image:
    """The maps of several classes beside their picture, above each one's overlay, as an RGB picture.

    `heats` are float ``(h, w)`` of the picture's size, all divided by one number, so that the same colour is the same
    evidence: in [0, 1], or in [−1, 1] when `signed`; NaN is marked as never seen. There is one of `labels` for each.
    Below the picture is the one colour bar. The `words` are those of `Foot`. Raises `InputError` where there is no
    map, a size differs, or labels are too few or too many.

    >>> import numpy as np
    >>> class_map_sheet(Image.new("RGB", (8, 8)), [np.zeros((8, 8))] * 3, ["cat", "dog", "car"], side=100).size
    (456, 265)
    """
    if len(heats) != len(labels) or not heats or isinstance(labels, str):
        raise InputError(f"A sheet has one label for each map, and a map at least: {len(heats)} maps, {labels!r}.")
    hot = [heatmap(heat, signed=signed) for heat in heats]
    laid = [overlay(image, heat, signed=signed) for heat in heats]
    picture = _fitted(image, side)
    foot = bar(side, words.get("top", "max"), signed, None, font(letter(2 * side)))
    page = montage([[picture, *hot], [foot, *laid]], column_labels=["picture", *labels], side=side)
    return _captioned(page, words.get("caption", ""), font(letter(2 * side)))


def _captioned(page: Image.Image, caption: str, face: Font) -> Image.Image:
    """The page with one line of text below it, cut to its width; the page itself where there is no text."""
    if not caption:
        return page
    whole = Image.new("RGB", (page.width, page.height + height(face)), PAPER)
    whole.paste(page, (0, 0))
    write(ImageDraw.Draw(whole), (_MARGIN, page.height - _GAP, page.width - 2 * _MARGIN), caption, face)
    return whole


def _filled(cells: Grid, side: int) -> list[list[Cell]]:
    """The pictures at the size they are shown, short rows filled up with None."""
    longest = max(map(len, cells), default=0)
    if longest == 0 or side < 1:
        raise InputError(f"Nothing to show: {len(cells)} rows of at most {longest} pictures, with side={side}.")
    return [[_fitted(cell, side) for cell in [*row, *[None] * (longest - len(row))]] for row in cells]


def _fitted(cell: Cell, side: int) -> Cell:
    if cell is None:
        return None
    scale = side / max(cell.size)
    return fit(rgb(cell), (max(1, round(cell.width * scale)), max(1, round(cell.height * scale))))


def _labels(what: str, labels: Sequence[str] | None, count: int) -> Sequence[str]:
    if labels is not None and (len(labels) != count or isinstance(labels, str)):
        raise InputError(f"A montage of {count} {what}s needs {count} {what} labels; got {len(labels)}: {labels!r}.")
    return labels or [""] * count


def _widest(labels: Iterable[str], face: Font, most: int) -> int:
    return min(most, max(int(face.getlength(clean(label))) + 1 for label in labels))


def _extent(places: Iterable[Cell], axis: int, side: int) -> int:
    return max((cell.size[axis] for cell in places if cell is not None), default=side)


def _spans(lengths: Sequence[int], start: int, floors: Sequence[int]) -> Spans:
    spans = list[tuple[int, int]]()
    for length, floor in zip(lengths, floors, strict=True):
        spans.append((start, max(length, floor)))
        start += spans[-1][1] + _GUTTER
    return spans


def _paste(page: Image.Image, grid: Grid, rows: Spans, columns: Spans) -> None:
    for (top, high), row in zip(rows, grid, strict=True):
        for (left, wide), cell in zip(columns, row, strict=True):
            picture = Image.new("RGB", (wide, high), _EMPTY) if cell is None else cell
            page.paste(picture, (left + (wide - picture.width) // 2, top + (high - picture.height) // 2))
