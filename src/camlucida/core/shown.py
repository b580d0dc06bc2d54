"""An explanation as a picture, whatever the input was: a signal, a picture, a volume, a clip.

A signal is shown as curves over its evidence (`view.strip`); three axes of space as slices or planes of a volume or as
frames of a clip. A tensor does not say which of them it is: with three channels it is taken for a clip, else for a
volume, and ``show="slices"``, ``"planes"`` or ``"frames"`` decides it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from camlucida import view
from camlucida.clips import Clip
from camlucida.errors import InputError, OutputError, did_you_mean
from camlucida.volumes import Volume, turn, turned

if TYPE_CHECKING:
    from camlucida.core.explanation import Explanation

_SHEET = 12  # frames of a clip on one sheet
_FILM = 384  # pixels of the longer side of a film of slices
_SLICES = 10.0  # slices a second, where a volume is shown as a film
_BODY = "IPL"  # slices from the top of the head down; front above, the body's right at the left, as radiologists look
_NAMES = {"I": "axial", "P": "coronal", "L": "sagittal"}
_AXES = ("z", "y", "x")


def overlay(e: "Explanation", i: int, signed: bool, scale: float | None, **look: Any) -> Image.Image:
    """Heat laid over input ``i``. Raises: InputError where the input has no axes that can be drawn."""
    asked = _Asked(e, i, signed, scale)
    if asked.axes == 2:
        return view.overlay(e.pictures.image(i), asked.heat, signed=signed, **look)
    if asked.axes == 1:
        return view.strip(asked.values, asked.heat, signed=signed, **{"bare": True, **look})
    kind = _kind(asked, look.pop("show", "frames" if asked.moves else "slices"))
    return _VIEWS[kind](asked, {"bare": True, **look})


def panel(e: "Explanation", i: int, signed: bool, scale: float | None, **look: Any) -> Image.Image:
    """Input ``i``, its heat map and both together, with caption, scale, and why a map is blank."""
    asked = _Asked(e, i, signed, scale)
    words = {"caption": e.caption(i), "note": asked.why}
    if asked.axes == 2:
        titles = ("picture", e.facts.title, "overlay")
        return view.panel(e.pictures.image(i), asked.heat, signed=signed, **{"titles": titles, **words, **look})
    words["title"] = f"{e.pictures.names[i]} · {e.facts.title}"
    if asked.axes == 1:
        return view.strip(asked.values, asked.heat, signed=signed, **{**words, **look})
    kind = _kind(asked, look.pop("show", "frames" if asked.moves else "planes"))
    apart = {} if kind == "planes" else {"apart": True}
    return _VIEWS[kind](asked, {**apart, **words, **look})


def film(e: "Explanation", i: int) -> tuple[list[Image.Image], float]:
    """The overlays of all frames of a clip or slices of a volume, and how many of them are shown a second.

    Raises: OutputError where there is but one picture.
    """
    asked = _Asked(e, i, False, None)
    if asked.axes != 3:
        raise OutputError("a film is made of a clip or a volume; this explanation is of neither.")
    original = asked.original
    if asked.moves:
        rate = original.rate if isinstance(original, Clip) else _SLICES
        return [view.overlay(p, h) for p, h in zip(asked.frames, asked.heat, strict=True)], rate
    solid, heat = asked.solid, asked.turned(asked.heat)
    return [view.slices(solid, heat, at=[k], bare=True, side=_FILM) for k in range(len(heat))], _SLICES


@dataclass(frozen=True)
class _Asked:
    """One input of an explanation, and everything that a view is made from."""

    e: "Explanation"
    i: int
    signed: bool
    scale: float | None

    @property
    def axes(self) -> int:
        return len(self.e.pictures.space)

    @property
    def why(self) -> str:
        shown = self.e.statuses[self.i] == "ok" or (self.signed and self.e.statuses[self.i] == "all-negative")
        return "" if shown else self.e.why(self.i)

    @cached_property
    def heat(self) -> NDArray[Any]:
        """The heat map on the input's own places, NaN where the model never saw them."""
        heat = self.e.heatmap(self.i, signed=self.signed, scale=self.scale).float().cpu()
        painted: NDArray[Any] = heat.masked_fill(~self.e.seen(self.i).cpu(), torch.nan).numpy()
        return painted

    @cached_property
    def values(self) -> NDArray[Any]:
        """What the model saw, ``c *space``. Raises: InputError where it is not at hand."""
        if self.e.pictures.tensor is None:
            raise InputError(f"an input with {self.axes} axes of space cannot be drawn: use heatmap() or map.")
        seen: NDArray[Any] = self.e.pictures.tensor[self.i].detach().float().cpu().numpy()
        return seen

    @property
    def original(self) -> Clip | Volume | None:
        return self.e.pictures.originals[self.i] if self.e.pictures.originals else None

    @property
    def moves(self) -> bool:
        """Whether it is a clip."""
        return isinstance(self.original, Clip) or (self.original is None and len(self.values) == 3)

    @property
    def frames(self) -> list[Image.Image]:
        """The frames of a clip; slices of a volume or tensor where these are asked for as frames."""
        if isinstance(self.original, Clip):
            return list(self.original.frames)
        values = np.moveaxis(np.nan_to_num(self._stack), 0, -1)
        values = values[..., :3] if values.shape[-1] >= 3 else values[..., :1].repeat(3, -1)
        low, high = float(values.min()), float(values.max())
        unit = (values - low) / max(high - low, np.finfo(np.float32).tiny)
        return [Image.fromarray(frame) for frame in (unit * 255 + 0.5).astype(np.uint8)]

    @property
    def _stack(self) -> NDArray[Any]:
        return self.original.grid.data if isinstance(self.original, Volume) else self.values

    @cached_property
    def way(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """From the axes of a file to those that are looked at: the body's, where the file knows them."""
        volume = self.original
        if not isinstance(volume, Volume) or not volume.grid.codes:
            return (0, 1, 2), ()
        return turn(volume.grid.codes, _BODY)

    def turned(self, values: NDArray[Any]) -> NDArray[Any]:
        """An array on the input's own axes as it is looked at."""
        return turned(values, self.way)

    @cached_property
    def solid(self) -> view.Solid:
        """The first channel as a volume that is looked at from the usual sides; a clip as a block of its frames."""
        if isinstance(self.original, Clip):
            return view.Solid(
                np.stack([np.asarray(frame) for frame in self.original.frames]), names=("frame", "y", "x")
            )
        order, flips = self.way
        voxels = self.turned(np.nan_to_num(self._stack[0]))
        if not isinstance(self.original, Volume):
            return view.Solid(voxels, names=_AXES)
        spacing = self.original.spacing
        told = bool(self.original.grid.codes)
        return view.Solid(
            voxels,
            spacing=(spacing[order[0]], spacing[order[1]], spacing[order[2]]),
            ends=(("S", "I"), ("A", "P"), ("R", "L")) if told else (("", ""),) * 3,
            flipped=tuple(axis in flips for axis in range(3)),
            names=tuple(_NAMES[letter] for letter in _BODY) if told else ("i", "j", "k"),
        )


def _kind(asked: _Asked, kind: str) -> str:
    if asked.axes != 3:
        raise InputError(f"an input with {asked.axes} axes of space cannot be drawn: use heatmap() or map.")
    if kind not in _VIEWS:
        raise InputError(f"there is no view show={kind!r} of a clip or a volume.{did_you_mean(str(kind), _VIEWS)}")
    return kind


def _frames(asked: _Asked, look: dict[str, Any]) -> Image.Image:
    pictures, clip = asked.frames, asked.original
    chosen = view.picked(asked.heat, 0, look.pop("count", _SHEET), look.pop("choose", "even"))
    labels = [f"frame {k}" for k in range(len(pictures))]
    if isinstance(clip, Clip):
        labels = [f"{number} · {time:.2f} s" for number, time in zip(clip.numbers, clip.times, strict=True)]
    cells = [pictures[k] for k in chosen], [asked.heat[k] for k in chosen], [labels[k] for k in chosen]
    return view.sheet(*cells, signed=asked.signed, **look)


def _slices(asked: _Asked, look: dict[str, Any]) -> Image.Image:
    return view.slices(asked.solid, asked.turned(asked.heat), signed=asked.signed, **look)


def _planes(asked: _Asked, look: dict[str, Any]) -> Image.Image:
    return view.planes(asked.solid, asked.turned(asked.heat), signed=asked.signed, **look)


_VIEWS = {"frames": _frames, "slices": _slices, "planes": _planes}
