"""Large pictures that are read tile by tile: tensors, and pictures at full resolution."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from camlucida.combine.given import Asked, net_of, settled, target_of
from camlucida.core.capture import Inputs
from camlucida.core.explain import explain
from camlucida.core.explanation import Explanation, Pictures
from camlucida.core.prepare import prepare, reads_bands, says_tensors
from camlucida.core.targets import ClassTarget
from camlucida.errors import InputError
from camlucida.frame import IMAGENET, Frame, Preprocess
from camlucida.images import Limits, Picture, open_picture
from camlucida.types import Loaded, Target

Corner = tuple[int, ...]
_LIMITS = Limits(max_pixels=1_000_000_000, max_bytes=4_000_000_000, max_side=1_000_000)


@dataclass(frozen=True)
class Large:
    """One picture to cut: ``cut`` makes the tile at a corner, ``c *tile``; ``inputs`` is what one tile is shown with.

    ``whole`` is the explanation of the picture as the model usually sees it, where it does.
    """

    size: tuple[int, ...]
    tile: tuple[int, ...]
    cut: Callable[[Corner], Tensor]
    inputs: Inputs
    pictures: Pictures
    target: Target
    whole: Explanation | None = None

    def shown(self, corners: Sequence[Corner]) -> Inputs:
        """What the model is called with for these tiles."""
        return self.inputs.showing(torch.stack([self.cut(c) for c in corners]))


def larges(model: nn.Module, x: Any, tile: int | Sequence[int] | None, asked: Asked) -> list[Large]:
    """The pictures that ``x`` holds, ready to be cut. Raises: InputError, PictureError."""
    if says_tensors(x):
        return _of_tensor(model, x, tile, asked)
    sources = list(x) if isinstance(x, list) else [x]
    if not sources:
        raise InputError("no picture was given: the list is empty.")
    told = model.preprocess if isinstance(model, Loaded) else None
    look = asked.get("preprocess") or told or IMAGENET
    return [_of_picture(model, s, tile, look, asked) for s in sources]


def _of_tensor(model: nn.Module, x: Any, tile: int | Sequence[int] | None, asked: Asked) -> list[Large]:
    inputs, pictures = prepare(net_of(model), x)
    inputs = replace(inputs, output=asked.get("output", inputs.output))
    whole, target = inputs.x, target_of(model, asked)
    size = tuple(whole.shape[2:])
    sides = _sides(tile, size, None)

    def cutter(own: Tensor) -> Callable[[Corner], Tensor]:
        return lambda corner: own[(slice(None), *(slice(a, a + t) for a, t in zip(corner, sides, strict=True)))]

    def one(i: int) -> Large:
        cut = cutter(whole[i])
        shown = inputs.row(i).put(cut((0,) * len(size))[None])
        return Large(size, sides, cut, shown, pictures[i : i + 1], _of_row(target, i, len(whole)))

    return [one(i) for i in range(len(whole))]


def _of_row(target: Target, i: int, count: int) -> Target:
    """A target that names one class for each of several pictures, for one of them."""
    if isinstance(target, ClassTarget) and len(target.indices) == count > 1:
        return replace(target, indices=target.indices[i : i + 1])
    return target


def _of_picture(
    model: nn.Module, source: Any, tile: int | Sequence[int] | None, look: Preprocess, asked: Asked
) -> Large:
    bands = source if isinstance(source, np.ndarray) and reads_bands(source, look) else None
    opened = source if bands is not None or isinstance(source, Picture) else open_picture(source, limits=_LIMITS)
    whole = explain(model, opened, **asked)
    image = whole.pictures.images[0]
    sides = _sides(tile, (image.height, image.width), look.size)
    full = replace(look, size=(sides[0], sides[1]), crop=1.0, fit="crop")  # a tile of its own size is not resampled
    like = next((p for p in net_of(model).parameters() if p.is_floating_point()), torch.empty(0))

    def cut(corner: Corner) -> Tensor:
        (top, left), (high, wide) = corner, sides
        if bands is not None:
            tensor, _ = full.bands(bands[top : top + high, left : left + wide])
        else:
            tensor, _ = full(image.crop((left, top, left + wide, top + high)))
        return tensor.to(like.device, like.dtype)

    size = (image.height, image.width)
    pictures = replace(whole.pictures, space=size, frames=(Frame.whole(image.width, image.height),))
    return Large(size, sides, cut, Inputs((cut((0, 0))[None],)), pictures, settled(model, whole, asked), whole)


def _sides(tile: int | Sequence[int] | None, size: Sequence[int], usual: Sequence[int] | None) -> tuple[int, ...]:
    """The sides of a tile, none longer than the picture's own. Raises: InputError."""
    given = usual if tile is None else [tile] * len(size) if isinstance(tile, int) else list(tile)
    if given is None:
        raise InputError("say how large a tile is, as tile=224, or one side for each axis.")
    if len(given) != len(size) or not all(isinstance(t, int) and t > 0 for t in given):
        raise InputError(f"a tile has {len(size)} sides, as the picture has, each of 1 pixel or more; got {tile!r}.")
    return tuple(min(t, s) for t, s in zip(given, size, strict=True))
