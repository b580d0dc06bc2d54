"""A mask, box or point of a picture, and the share of each place of another grid that it covers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from camlucida.core.pictures import Pictures
from camlucida.errors import InputError

Ends = tuple[tuple[float, float], ...]
"""Where a grid begins and ends along each axis of space, in pixels of the picture."""


@dataclass(frozen=True, eq=False)
class Cover:
    """A part of each picture, in its own pixels: a mask ``height width`` (one for each picture: ``b height width``),
    a box (left, top, right, bottom) or a point (x, y)."""

    kind: Literal["mask", "box", "point"]
    values: Tensor

    @classmethod
    def of(cls, mask: Any, box: Any, point: Any) -> "Cover":
        """The one that is given. Raises: InputError where it is none."""
        if mask is not None:
            return cls("mask", _mask(mask))
        kind: Literal["box", "point"] = "point" if box is None else "box"
        count, given = (2, point) if box is None else (4, box)
        try:
            values = torch.tensor([float(v) for v in given or ()], dtype=torch.float64)
        except (TypeError, ValueError):
            values = torch.zeros(0)
        if len(values) != count or not values.isfinite().all():
            names = "(left, top, right, bottom)" if count == 4 else "(x, y)"
            raise InputError(f"a {kind} is {names} in pixels of the picture; got {given!r}.")
        if count == 4 and not (values[2] > values[0] and values[3] > values[1]):
            raise InputError(f"a box is (left, top, right, bottom), with right > left and bottom > top; got {given!r}.")
        return cls(kind, values)

    def __str__(self) -> str:
        numbers = ", ".join(f"{v:g}" for v in self.values.tolist()) if self.kind != "mask" else ""
        return {"mask": "over the mask", "box": f"in the box {numbers}", "point": f"at the point {numbers}"}[self.kind]

    def check(self, pictures: Pictures) -> None:
        """Raises: InputError where it does not fit the pictures, or touches nothing that the model sees of them."""
        for i in range(len(pictures.names)):
            size = size_of(pictures, i)
            if self.kind == "mask":
                self._check_mask(size, len(pictures.names))
            elif len(size) != 2:
                raise InputError(f"a {self.kind} is of a picture; this input has {len(size)} axes of space: use mask=.")
            if not self._share(pictures, (16,) * len(size), i).any():
                raise InputError(
                    f"the region {self} of picture {i} covers nothing that the model sees: the picture is "
                    f"{spoken(size)} pixels" + ("" if self.kind != "mask" else ", and the mask is empty there") + "."
                )

    def _check_mask(self, size: Sequence[int], count: int) -> None:
        shape = tuple(self.values.shape)
        if shape != tuple(size) and shape != (count, *size):
            raise InputError(
                f"the mask is {'×'.join(map(str, shape))}, and the picture {'×'.join(map(str, size))} (height × "
                f"width): a mask has the picture's own pixels, or (b, height, width) with one for each of {count}."
            )

    def shares(self, pictures: Pictures, grid: Sequence[int]) -> Float[Tensor, "b *grid"]:
        """The share of each place of a grid over the whole input that is covered; a point covers the place it is in."""
        return torch.stack([self._share(pictures, grid, i) for i in range(len(pictures.names))])

    def _share(self, pictures: Pictures, grid: Sequence[int], i: int) -> Float[Tensor, "*grid"]:
        size, span = size_of(pictures, i), ends(pictures, i)
        if self.kind == "mask":
            own = pictures.turned(self.values if self.values.dim() == len(size) else self.values[i], i)
            for axis, (n, cells, (start, end)) in enumerate(zip(own.shape, grid, span, strict=True)):
                own = torch.tensordot(own, overlaps(n, cells, start, end), ([axis], [1])).movedim(-1, axis)
            return own
        inside = [
            _line(a, b, cells, start, end, self.kind == "point")
            for (a, b), cells, (start, end) in zip(self._sides(size), grid, span, strict=True)
        ]
        return inside[0][:, None] * inside[1][None, :]

    def _sides(self, size: Sequence[int]) -> tuple[tuple[float, float], tuple[float, float]]:
        """Where it begins and ends, from top to bottom and from left to right; nothing lies outside the picture."""
        v = self.values.tolist()
        x0, y0, x1, y1 = v if self.kind == "box" else (*v, *v)
        if self.kind == "box":
            return (max(y0, 0.0), min(y1, float(size[0]))), (max(x0, 0.0), min(x1, float(size[1])))
        return ((y0, y0), (x0, x0)) if 0 <= y0 < size[0] and 0 <= x0 < size[1] else ((-1e30, -1e30),) * 2


def _mask(given: Any) -> Float[Tensor, "*shape"]:
    mask = torch.as_tensor(given).detach().cpu().double()
    if mask.dim() < 1 or not mask.isfinite().all() or bool((mask < 0).any()) or not bool((mask > 0).any()):
        raise InputError(
            f"a mask is 0 outside the region and above 0 inside it, with something inside; got {tuple(mask.shape)} "
            f"from {float(mask.min()) if mask.numel() else 0:g} to {float(mask.max()) if mask.numel() else 0:g}."
        )
    return mask / mask.max()


def _line(a: float, b: float, cells: int, start: float, end: float, point: bool) -> Float[Tensor, " cells"]:
    """The share of each cell between ``start`` and ``end`` that lies between ``a`` and ``b``."""
    edges = start + (end - start) * torch.arange(cells + 1, dtype=torch.float64) / cells
    if point:
        return ((edges[:-1] <= a) & (a < edges[1:])).double()
    return (edges[1:].clamp(max=b) - edges[:-1].clamp(min=a)).clamp(min=0) * (cells / (end - start))


def overlaps(pixels: int, cells: int, start: float, end: float) -> Float[Tensor, "cells pixels"]:
    """The share of each cell of a grid from ``start`` to ``end`` that each pixel of a picture fills, along one axis.

    >>> overlaps(4, 2, 1.0, 3.0).tolist()
    [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
    """
    edges = start + (end - start) * torch.arange(cells + 1, dtype=torch.float64) / cells
    at = torch.arange(pixels, dtype=torch.float64)
    low, high = torch.maximum(edges[:-1, None], at), torch.minimum(edges[1:, None], at + 1)
    return (high - low).clamp(min=0) * (cells / (end - start))


def size_of(pictures: Pictures, i: int) -> tuple[int, ...]:
    """The size of picture ``i`` as it was handed over: height and width, a file's voxels, or the input's own space."""
    if not pictures.frames:
        volume: Any = pictures.originals[i] if pictures.originals else None
        return volume.size if volume else pictures.space
    frame = pictures.frames[i]
    return (*pictures.space[:-2], frame.height, frame.width)


def ends(pictures: Pictures, i: int) -> Ends:
    """Where the model's input begins and ends, in pixels of picture ``i``: beyond it where the picture was padded."""
    if not pictures.frames:
        size = pictures.turned(torch.empty(size_of(pictures, i), device="meta"), i).shape
        return tuple((0.0, float(n)) for n in size)
    whole = tuple((0.0, float(n)) for n in pictures.space)
    left, top, right, bottom = pictures.frames[i].box
    return (*whole[:-2], (top, bottom), (left, right))


def spoken(size: Sequence[int]) -> str:
    """A size as people say it: width × height."""
    return "×".join(map(str, reversed(size)))
