"""A volume under its heat: slices side by side, and three planes through the peak, in true proportions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camlucida.errors import InputError
from camlucida.view.colour import Heat
from camlucida.view.marks import tag
from camlucida.view.overlay import overlay
from camlucida.view.page import Text, page, tiled
from camlucida.view.sheet import Sheet, sheet
from camlucida.view.sizes import Size, letter
from camlucida.view.text import font

Array = NDArray[Any]
Triple = tuple[float, float, float]

_LEAST = (64, 40)  # a plane of a flat volume stands on black of this size, so that its words can be read
_RANGE = (0.5, 99.5)  # percentiles shown as black and white
_CROSS = 0.6  # how white the lines through the peak are


@dataclass(frozen=True)
class Solid:
    """What slices are cut from: a volume ``(d, h, w)`` of grey values, or ``(d, h, w, 3)`` of uint8 RGB.

    A slice shows the two axes that are left in their order: rows, then columns. `spacing` is the size of a voxel along
    each axis, `ends` what lies at the beginning and the end of each ("S", "I"). `flipped` axes are counted backwards,
    as where the file holds them the other way round. `names` are what a slice across each axis is called.
    """

    voxels: Array
    spacing: Triple = (1.0, 1.0, 1.0)
    ends: tuple[tuple[str, str], ...] = (("", ""),) * 3
    flipped: tuple[bool, ...] = (False,) * 3
    names: tuple[str, ...] = ("axis 0:", "axis 1:", "axis 2:")

    def __post_init__(self) -> None:
        colour = self.voxels.ndim == 4 and self.voxels.shape[3] == 3 and self.voxels.dtype == np.uint8
        if not (self.voxels.ndim == 3 or colour) or self.voxels.size == 0:
            raise InputError(f"A volume is (d, h, w), or (d, h, w, 3) of uint8; got shape {self.voxels.shape}.")
        if len(self.spacing) != 3 or not all(0 < s < np.inf for s in self.spacing):
            raise InputError(f"The spacing of a volume is three sizes above 0; got {self.spacing}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        d, h, w = self.voxels.shape[:3]
        return d, h, w

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """The voxels in 256 steps, from the darkest to the brightest of them, a few outliers left aside."""
        if self.voxels.ndim == 4:
            given: NDArray[np.uint8] = self.voxels
            return given
        values = np.where(np.isfinite(self.voxels), self.voxels, np.nan).astype(np.float32)
        if np.isnan(values).all():
            return np.zeros(self.shape, np.uint8)
        low, high = np.nanpercentile(values[tuple(slice(None, None, 1 + n // 128) for n in self.shape)], _RANGE)
        unit = (np.nan_to_num(values, nan=low) - low) / max(high - low, np.finfo(np.float32).tiny)
        steps: NDArray[np.uint8] = (unit.clip(0, 1) * 255 + 0.5).astype(np.uint8)
        return steps

    def number(self, axis: int, k: int) -> int:
        """The number of a slice as the file counts it."""
        return self.shape[axis] - 1 - k if self.flipped[axis] else k


class Cut(Sheet, total=False):
    """The words of a sheet, and which slices it shows: `count` of them, with `choose` "even" at even distances,
    with "evidence" those that have most of it.

    `at` names them one by one instead. No slice is longer than `side` pixels.
    """

    count: int
    choose: str
    at: Sequence[int]
    side: int


def slices(
    solid: Solid,
    heat: Heat,
    *,
    colours: str | None = None,
    signed: bool = False,
    axis: int = 0,
    **words: Unpack[Cut],
) -> Image.Image:
    """Slices across `axis` under their heat, on one scale, each with its number.

    `heat` is float ``(d, h, w)`` of the volume's size, in [0, 1], or in [−1, 1] when `signed`. The `words` are those of
    `Cut`. Raises `InputError` where sizes differ, or for an axis or a choice that does not exist.

    >>> slices(Solid(np.zeros((20, 8, 8))), np.zeros((20, 8, 8)), count=4, side=64, bare=True).size
    (132, 132)
    """
    heat = _checked(solid, heat)
    if axis not in (0, 1, 2):
        raise InputError(f"A volume is cut across axis 0, 1 or 2; got {axis}.")
    even = picked(heat, axis, words.pop("count", 12), words.pop("choose", "even"))
    chosen = words.pop("at", even)
    if not all(0 <= k < solid.shape[axis] for k in chosen):
        raise InputError(f"There are slices 0 to {solid.shape[axis] - 1} across axis {axis}; got at={list(chosen)}.")
    size = _size(solid, axis, words.pop("side", 224) / _longest(solid, axis))
    cut = [_padded(plane(solid.pixels, axis, k, size)) for k in chosen]
    hot = [_heat(heat, axis, k, size) for k in chosen]
    labels = [f"{solid.names[axis]} {solid.number(axis, k)}" for k in chosen]
    return sheet(cut, hot, labels, colours=colours, signed=signed, side=max(cut[0].size), **words)  # type: ignore[misc]


def planes(
    solid: Solid,
    heat: Heat,
    *,
    colours: str | None = None,
    signed: bool = False,
    side: int = 320,
    **words: Unpack[Text],
) -> Image.Image:
    """The three planes through the strongest evidence, with a cross there: the volume above, under its heat below.

    All six are of one scale, at most `side` pixels long, and in true proportions; letters at their edges say what lies
    there. Of a map without evidence the middle is shown. `heat` and the `words` are as in `slices`, those of `Text`.
    Raises `InputError` where sizes differ.

    >>> planes(Solid(np.zeros((8, 8, 8))), np.zeros((8, 8, 8)), side=100, bare=True).size
    (308, 204)
    """
    heat = _checked(solid, heat)
    at = peak(heat)
    scale = side / max(_longest(solid, axis) for axis in range(3))
    above, below = list[Image.Image](), list[Image.Image]()
    for axis in range(3):
        size = _size(solid, axis, scale)
        picture = _padded(plane(solid.pixels, axis, at[axis], size))
        hot = overlay(picture, _heat(heat, axis, at[axis], size), colours=colours, signed=signed)
        for row, cell in ((above, picture), (below, hot)):
            row.append(_marked(cell, solid, axis, at, size))
    return page(tiled([above, below]), colours=colours, signed=signed, **words)


def picked(heat: Heat, axis: int, count: int, choose: str = "even") -> list[int]:
    """Which slices across `axis` are shown, in order: the middles of `count` equal parts, or those with most evidence.

    >>> picked(np.zeros((20, 4, 4)), 0, 4), picked(np.eye(5)[:, None] * np.arange(5.0), 0, 2, "evidence")
    ([2, 7, 12, 17], [3, 4])
    """
    if choose not in ("even", "evidence") or count < 1:
        raise InputError(f"choose= is 'even' or 'evidence', of at least one slice; got {choose!r} and count={count}.")
    total = heat.shape[axis]
    if choose == "evidence":
        others = tuple(other for other in range(heat.ndim) if other != axis)
        strength = np.abs(np.nan_to_num(heat)).sum(others)
        return sorted(int(k) for k in np.argsort(-strength, kind="stable")[:count])
    return [(2 * k + 1) * total // (2 * min(count, total)) for k in range(min(count, total))]


def peak(heat: Heat) -> tuple[int, int, int]:
    """Where the evidence is strongest, the middle of equals; the middle of a map without any.

    >>> peak(np.zeros((3, 5, 7)))
    (1, 2, 3)
    """
    strength = np.abs(np.nan_to_num(heat))
    places = np.argwhere(strength == strength.max())
    middle = (np.array(heat.shape) - 1) / 2 if len(places) == heat.size else places.mean(0)
    z, y, x = places[np.abs(places - middle).sum(1).argmin()].tolist()
    return z, y, x


def plane(pixels: NDArray[np.uint8], axis: int, k: int, size: Size) -> Image.Image:
    """One slice in true proportions, as an RGB picture: averaged where it shrinks, in hard-edged pixels where it grows.

    >>> plane(np.zeros((4, 8, 6), np.uint8), 0, 2, (12, 32)).size
    (12, 32)
    """
    cut = np.ascontiguousarray(pixels.take(k, axis))
    return Image.fromarray(cut).convert("RGB").resize(size, Image.Resampling.BOX)


def _checked(solid: Solid, heat: Heat) -> Heat:
    heat = np.asarray(heat, np.float32)
    if heat.shape != solid.shape:
        raise InputError(f"A heat map must have its volume's size: {solid.shape} voxels, the map {heat.shape}.")
    return heat


def _longest(solid: Solid, axis: int) -> float:
    return max(n * s for a, (n, s) in enumerate(zip(solid.shape, solid.spacing, strict=True)) if a != axis)


def _size(solid: Solid, axis: int, scale: float) -> Size:
    high, wide = (
        max(1, round(n * s * scale))
        for a, (n, s) in enumerate(zip(solid.shape, solid.spacing, strict=True))
        if a != axis
    )
    return wide, high


def _heat(heat: Heat, axis: int, k: int, size: Size) -> Heat:
    small = np.asarray(Image.fromarray(heat.take(k, axis)).resize(size, Image.Resampling.BOX))
    more = [max(0, least - had) for had, least in zip(size, _LEAST, strict=True)]
    return np.pad(small, [(extra // 2, extra - extra // 2) for extra in more[::-1]])


def _padded(picture: Image.Image) -> Image.Image:
    """A very flat picture in the middle of black, for its words need room."""
    wide, high = (max(had, least) for had, least in zip(picture.size, _LEAST, strict=True))
    if picture.size == (wide, high):
        return picture
    made = Image.new("RGB", (wide, high))
    made.paste(picture, ((wide - picture.width) // 2, (high - picture.height) // 2))
    return made


def _marked(cell: Image.Image, solid: Solid, axis: int, at: tuple[int, int, int], size: Size) -> Image.Image:
    """A plane with the cross at the peak, its number, and what lies at its edges."""
    rows, columns = (other for other in range(3) if other != axis)
    inset = (cell.width - size[0]) // 2, (cell.height - size[1]) // 2
    x = inset[0] + int((at[columns] + 0.5) / solid.shape[columns] * size[0])
    y = inset[1] + int((at[rows] + 0.5) / solid.shape[rows] * size[1])
    made, face = _crossed(cell, x, y), font(letter(cell.width) + 2)
    (top, bottom), (left, right) = solid.ends[rows], solid.ends[columns]
    edges = ((top, (0.5, 0.0)), (bottom, (0.5, 1.0)), (left, (0.0, 0.5)), (right, (1.0, 0.5)))
    for word, where in (*edges, (f"{solid.names[axis]} {solid.number(axis, at[axis])}", (0.0, 1.0))):
        made = tag(made, word, face, where) if word else made
    return made


def _crossed(cell: Image.Image, x: int, y: int) -> Image.Image:
    """Two pale lines that leave the place itself, where they would meet, free."""
    pixels = np.array(cell, np.float32)
    free = max(4, min(cell.size) // 16)
    across, down = np.abs(np.arange(cell.width) - x) > free, np.abs(np.arange(cell.height) - y) > free
    pixels[y, across] += (255 - pixels[y, across]) * _CROSS
    pixels[down, x] += (255 - pixels[down, x]) * _CROSS
    return Image.fromarray((pixels + 0.5).astype(np.uint8))
