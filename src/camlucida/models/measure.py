"""The preprocessing of any other library, measured: what its transform does to test pictures, as a `Preprocess`.

Nothing of a transform is read, for every class of them has keys of its own. Black and white tell the numbers, red the
order of the channels, ramps where the picture is cut, and noise how it is resized and whether all of that is true.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from camlucida.errors import InputError
from camlucida.frame import IMAGENET, Box, Frame, Preprocess

Transform = Callable[[Image.Image], Any]
Fit = Literal["crop", "squash", "letterbox"]

_SIDES = ((450, 300), (360, 540))  # an aspect that no transform keeps by chance, lying and upright, and two scales
_FITS: tuple[Fit, ...] = ("crop", "squash", "letterbox")
_HOW = ("bilinear", "bicubic", "lanczos", "nearest")
_STILL = ((0, 0),)
_MOVED = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1))
_SAME, _LEVELS = 0.5, 3.0  # mean grey levels of 255: no more than rounding; as far as libraries resize differently


@dataclass(frozen=True)
class Swapped(Preprocess):
    """As `Preprocess`, but the channels come out in the order blue, green, red."""

    def __call__(self, picture: Image.Image) -> tuple[Float[Tensor, "c h w"], Frame]:
        x, frame = super().__call__(picture)
        return x.flip(0), frame


@dataclass(frozen=True)
class Kept(Preprocess):
    """As `Preprocess`, but of a size, ``size_of(width, height)`` = (h, w), that goes with the whole picture's own."""

    size_of: Callable[[int, int], tuple[int, int]] = lambda width, height: (height, width)

    def __call__(self, picture: Image.Image) -> tuple[Float[Tensor, "c h w"], Frame]:
        size = self.size_of(*picture.size)
        return Preprocess(size, self.mean, self.std, 1.0, "squash", self.interpolation)(picture)


@dataclass(frozen=True)
class Untold(Preprocess):
    """Stands where a transform does what no `Preprocess` can say: pictures are refused, ready batches are not."""

    why: str = ""

    def __call__(self, picture: Image.Image) -> tuple[Float[Tensor, "c h w"], Frame]:  # noqa: ARG002
        raise InputError(
            f"pictures cannot be made ready for this model: {self.why}. Hand over a ready batch (b, c, h, w), or "
            "preprocess=camlucida.Preprocess(…)."
        )


class _Unsaid(Exception):
    """What a transform does that a `Preprocess` has no word for."""


def measured(transform: Transform) -> Preprocess:
    """The `Preprocess` that does what ``transform`` does: picture → ``c h w``; an `Untold` where there is none.

    Pictures come out the same but for rounding: up to a pixel where a margin is odd, and the last bits of resizing.

    >>> how = Preprocess((32, 32), (0.5, 0.4, 0.3), (0.2, 0.3, 0.2), crop=0.8, interpolation="bicubic")
    >>> measured(lambda picture: how(picture)[0]) == how
    True
    """
    try:
        return _found(transform)
    except _Unsaid as reason:
        return Untold(IMAGENET.size, IMAGENET.mean, IMAGENET.std, why=f"its own transform {reason}")


def _found(transform: Transform) -> Preprocess:
    _, *size = _run(transform, _plain(_SIDES[0])).shape
    fixed = tuple(size) == tuple(_run(transform, _plain(_SIDES[1])).shape[1:])
    mean, std = _numbers(transform)
    boxes = [_box(transform, w, h) for w, h in _SIDES]
    known: list[Preprocess]
    if fixed:
        kind = Swapped if _swapped(transform) else Preprocess
        known = [kind((size[0], size[1]), mean, std, *how) for how in _shapes((size[0], size[1]), boxes)]
    else:
        known = [Kept((size[0], size[1]), mean, std, 1.0, "squash", size_of=_sizes(transform))]
    fitting = [p for p in known if all(_near(p, box, *side) for box, side in zip(boxes, _SIDES, strict=True))]
    if not fitting:
        raise _Unsaid("cuts the picture in a way that camlucida has no word for")
    return _proved(transform, fitting)


# ------------------------------------------------------------------------------------------------------- the numbers


def _run(transform: Transform, picture: Image.Image) -> Float[Tensor, "c h w"]:
    try:
        x = torch.as_tensor(transform(picture))
    except Exception as fault:  # another library's code, made for other inputs: videos, pairs of pictures
        said = " ".join(str(fault).split())[:120]
        raise _Unsaid(f"fails on a picture ({type(fault).__name__}: {said})") from fault
    if x.dim() != 3 or len(x) not in (1, 3) or not x.is_floating_point():
        raise _Unsaid(f"makes a tensor of shape {tuple(x.shape)} of a picture")
    return x.float()


def _plain(side: tuple[int, int], *colour: int) -> Image.Image:
    return Image.new("RGB", side, ((colour or (0,)) * 3)[:3])


def _centre(transform: Transform, *colour: int) -> Float[Tensor, " c"]:
    """What becomes of a colour; in the middle, for there may be borders."""
    x = _run(transform, _plain(_SIDES[0], *colour))
    return x[:, x.shape[1] // 2, x.shape[2] // 2]


def _numbers(transform: Transform) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation, from what becomes of black and of white; a grey between proves the straight line."""
    low, grey, high = (_centre(transform, v) for v in (0, 51, 255))
    step = high - low
    if not bool((step > 0).all()) or not torch.allclose(grey, low + step / 5, atol=1e-3 * float(step.max())):
        raise _Unsaid("changes the values of a picture in another way than mean and deviation")
    return _rounded(-low / step), _rounded(1 / step)


def _rounded(values: Tensor) -> tuple[float, ...]:
    """What was measured in single precision, as the decimal numbers that were meant."""
    return tuple(float(f"{v:.6g}") + 0.0 for v in values.double().tolist())


def _swapped(transform: Transform) -> bool:
    """Whether blue comes first."""
    red, black = _centre(transform, 255, 0, 0), _centre(transform)
    return len(red) == 3 and bool((red - black).abs().argmax() == 2)


# ------------------------------------------------------------------------------------------------------- the geometry


def _sizes(transform: Transform) -> Callable[[int, int], tuple[int, int]]:
    def size_of(width: int, height: int) -> tuple[int, int]:
        _, h, w = _run(transform, _plain((width, height))).shape
        return h, w

    return size_of


def _box(transform: Transform, width: int, height: int) -> Box:
    """Where in a picture of this size the tensor's edges lie."""
    top, bottom = _edges(transform, width, height, 0)
    left, right = _edges(transform, width, height, 1)
    return left, top, right, bottom


def _edges(transform: Transform, width: int, height: int, axis: int) -> tuple[float, float]:
    """The tensor's edges along an axis, in pixels: a straight line through what became of a ramp."""
    low, x, high = (_run(transform, p) for p in _ramp(width, height, axis))
    share = ((x - low) / (high - low))[0]
    line = share[share.shape[0] // 2] if axis else share[:, share.shape[1] // 2]
    at = (torch.arange(len(line)) + 0.5) / len(line)
    inner = line.isfinite() & (line > 0.02) & (line < 0.98)
    if int(inner.sum()) < 4:
        raise _Unsaid("leaves nothing of a ramp")
    slope, start = np.polyfit(at[inner].numpy(), line[inner].numpy(), 1)
    count = (height, width)[axis]
    return float(start * count), float((start + slope) * count)


def _ramp(width: int, height: int, axis: int) -> list[Image.Image]:
    """Black, a ramp along an axis, and white."""
    count = (height, width)[axis]
    line = np.round(255 * (np.arange(count) + 0.5) / count).astype(np.uint8)
    plane = np.broadcast_to(line[:, None] if axis == 0 else line[None], (height, width))
    ramp = Image.fromarray(np.repeat(plane[..., None], 3, 2))
    return [_plain((width, height)), ramp, _plain((width, height), 255)]


def _shapes(size: tuple[int, int], boxes: Sequence[Box]) -> Iterator[tuple[float, Fit]]:
    """Every way of fitting, with the share that was measured of the side that limits."""
    (left, top, right, bottom), (width, height) = boxes[0], _SIDES[0]
    shares = (bottom - top) / height, (right - left) / width
    for fit in _FITS:
        side, share = max(zip(size, shares, strict=True), key=lambda pair: pair[1])
        resized = round(side / max(share, 1e-3))  # a ramp of 256 greys tells it to a pixel or so
        whole = {max(side, resized + more): None for more in (0, -1, 1)} if fit != "letterbox" else [side]
        yield from ((side / each, fit) for each in whole)


def _near(how: Preprocess, box: Box, width: int, height: int) -> bool:
    """Whether a way of fitting covers the box that was measured, to a pixel and a half of the tensor."""
    x, frame = how(_plain((width, height)))
    across, down = (box[2] - box[0]) / x.shape[2], (box[3] - box[1]) / x.shape[1]
    off = np.abs(np.subtract(frame.box, box)) / np.array([across, down, across, down])
    return bool(off.max() < 1.5)


# ----------------------------------------------------------------------------------------------------------- the proof


def _proved(transform: Transform, known: Sequence[Preprocess]) -> Preprocess:
    """The one of those known that makes of noise what the transform does. Raises: _Unsaid where none does."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*_SIDES[1], 3), dtype=np.uint8))
    theirs = _run(transform, noise)
    ways = [replace(p, interpolation=how) for p in known for how in _HOW]  # type: ignore[arg-type]
    for shifts in (_STILL, _MOVED):  # crops round odd margins differently
        found: dict[float, Preprocess] = {}
        for way in ways:
            off = _difference(way, noise, theirs, shifts)
            if off <= _SAME:
                return way
            found.setdefault(off, way)
        if min(found) <= _LEVELS:
            return found[min(found)]
    raise _Unsaid("resizes a picture in a way that camlucida has no word for")


def _difference(how: Preprocess, picture: Image.Image, theirs: Tensor, shifts: Sequence[tuple[int, int]]) -> float:
    """Mean grey levels between our tensor and theirs, at the best of some shifts, the edges left out."""
    ours, std = how(picture)[0], torch.tensor(how.std).view(-1, 1, 1)
    off = [((ours.roll(s, (1, 2)) - theirs) * std)[:, 1:-1, 1:-1].abs().mean() for s in shifts]
    return 255 * min(map(float, off))
