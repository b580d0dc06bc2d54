"""A sheet of many pictures of one thing, each under its own heat: the frames of a clip, the slices of a volume."""

from collections.abc import Sequence
from math import ceil, sqrt
from typing import Unpack

from PIL import Image

from camlucida.errors import InputError
from camlucida.view.colour import Heat
from camlucida.view.marks import tag
from camlucida.view.overlay import overlay, rgb
from camlucida.view.page import Text, page, tiled
from camlucida.view.sizes import Size, fit, fit_heat, letter, shown
from camlucida.view.text import font

_WIDEST = 1600  # pixels of a whole sheet


class Sheet(Text, total=False):
    """The words of a page, and how the pictures lie on it.

    `columns` in a row are found if not given; with `apart` each row of overlays stands below the row of its pictures.
    """

    columns: int
    apart: bool


def sheet(
    pictures: Sequence[Image.Image],
    heats: Sequence[Heat],
    labels: Sequence[str],
    *,
    colours: str | None = None,
    signed: bool = False,
    side: int = 224,
    **words: Unpack[Sheet],
) -> Image.Image:
    """Overlays in rows, each with its label in the corner, all on one scale, as an RGB picture.

    `heats` are float ``(h, w)`` of their picture's size, in [0, 1], or in [−1, 1] when `signed`; NaN is marked as never
    seen. Pictures longer than `side` pixels are shrunk to it. The `words` are those of `Sheet`. Raises `InputError`
    where there is not one heat map and one label for each picture, or none at all.

    >>> import numpy as np
    >>> sheet([Image.new("RGB", (100, 50))] * 4, [np.zeros((50, 100))] * 4, list("abcd"), side=100, bare=True).size
    (204, 104)
    """
    if not pictures or not len(pictures) == len(heats) == len(labels):
        raise InputError(
            f"A sheet has a heat map and a label for each picture, and a picture at least; got {len(pictures)} "
            f"pictures, {len(heats)} heat maps and {len(labels)} labels."
        )
    sizes = [shown(picture.size, side) for picture in pictures]
    under = [fit(rgb(picture), size) for picture, size in zip(pictures, sizes, strict=True)]
    small = [fit_heat(heat, size) for heat, size in zip(heats, sizes, strict=True)]
    over = [overlay(p, heat, colours=colours, signed=signed) for p, heat in zip(under, small, strict=True)]
    columns = words.pop("columns", 0) or _columns(len(over), sizes[0])
    kinds = [under, over] if words.pop("apart", False) else [over]
    rows = list[list[Image.Image]]()
    for start in range(0, len(over), columns):
        rows += [_labelled(kind[start : start + columns], labels[start : start + columns]) for kind in kinds]
    return page(tiled(rows), colours=colours, signed=signed, **words)  # type: ignore[misc]


def _labelled(cells: Sequence[Image.Image], labels: Sequence[str]) -> list[Image.Image]:
    return [tag(cell, label, font(letter(cell.width))) for cell, label in zip(cells, labels, strict=True)]


def _columns(count: int, size: Size) -> int:
    """As many in a row as make the sheet about as wide as one and a half times its height, within the widest."""
    wanted = ceil(sqrt(1.5 * count * size[1] / size[0]))
    fitting = min(count, max(1, min(wanted, _WIDEST // (size[0] + 4))))
    return ceil(count / ceil(count / fitting))  # rows as even as they can be
