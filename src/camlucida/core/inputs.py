"""What a model is called with, and which of it the map lies on.

Pictures are always spoken of as one tensor, ``b c *space``, whatever the model takes them as: a batch, a list of
pictures without the batch axis (as detectors do), or a video whose frames come before its channels. Reading it from
the arguments and putting another in its place are the two ways between them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from camlucida.core.outputs import Which
from camlucida.core.structure import items, rebuilt, tensors
from camlucida.errors import InputError

Place: TypeAlias = tuple[int | str, ...]
"""Where a tensor lies among the arguments: a position or a keyword first, then positions and keys inside it."""

Taken: TypeAlias = Literal["batch", "list", "frames first"]
"""How a model takes its pictures: ``b c *space``; a list of ``c *space``; a video, ``b t c h w``."""

_COLOURS = 3  # the channels of a video


@dataclass(frozen=True)
class Inputs:
    """What the model is called with: positional and keyword arguments, with whatever containers are inside them.

    ``mapped`` says which of them the map lies on: the position of an argument, its name, or a tuple of both that leads
    into containers, as ``(0, "image")``; left alone it is the largest floating-point tensor with space. ``takes`` says
    how the model takes it (`Taken`), where the model does not tell. ``output`` is the part of the model's answer that
    is meant (`camlucida.core.outputs.chosen`).

    >>> import torch
    >>> Inputs((torch.zeros(1, 3, 8, 8),)).x.shape
    torch.Size([1, 3, 8, 8])
    >>> Inputs(([torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)],)).x.shape
    torch.Size([2, 3, 8, 8])
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    mapped: int | str | Place | None = None
    takes: Taken | None = None
    output: Which = None

    @property
    def x(self) -> Tensor:
        """The pictures, ``b c *space``. Raises: InputError where there are none, or none is named of several."""
        own = self.settled()
        return _read(own._at(own._place), own.takes)

    @property
    def lone(self) -> bool:
        """Whether the pictures are all that the model is called with."""
        return len(tensors([list(self.args), dict(self.kwargs)])) == 1

    def settled(self, axes: int | None = None, channels: int | None = None) -> "Inputs":
        """The same with its pictures found once and for all; a model of ``axes`` axes, the batch's among them, that
        reads so many ``channels``, helps to tell.

        Raises: InputError that lists what was given, where no tensor is meant for certain.
        """
        place = self._chosen(axes) if self.mapped is None else self._named()
        value = self._at(place)
        takes = self.takes or ("list" if _rows(value, axes) else _order(value, channels))
        _check_picture(value, takes, self)
        return replace(self, mapped=place, takes=takes)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """The same inputs with ``change`` applied to every tensor, whatever holds it."""

        def each(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else rebuilt(value, lambda _, part: each(part))

        return replace(self, args=tuple(map(each, self.args)), kwargs={k: each(v) for k, v in self.kwargs.items()})

    def put(self, x: Tensor) -> "Inputs":
        """The same inputs with other pictures ``n c *space`` in the place of these; all else as it is."""
        own = self.settled()

        def along(value: Any, place: Place) -> Any:
            if not place:
                return _given_as(x, own.takes, value)
            return rebuilt(value, lambda key, part: along(part, place[1:]) if key == place[0] else part)

        first, *rest = own._place
        if isinstance(first, int):
            args = (along(v, tuple(rest)) if i == first else v for i, v in enumerate(self.args))
            return replace(own, args=tuple(args))
        return replace(own, kwargs={k: along(v, tuple(rest)) if k == first else v for k, v in self.kwargs.items()})

    def row(self, i: int) -> "Inputs":
        """The inputs of picture ``i`` alone, as a batch of one; what is no batch stays as it is."""
        x = self.x
        return self._rows_by(len(x), lambda v: v[i : i + 1]).put(x[i : i + 1])

    def showing(self, x: Tensor) -> "Inputs":
        """The inputs of one picture with others in its place, ``n c *space``; what came with it is repeated for each.

        >>> import torch
        >>> Inputs((torch.zeros(1, 3, 8, 8), torch.ones(1, 2))).showing(torch.zeros(4, 3, 8, 8)).args[1].shape
        torch.Size([4, 2])
        """
        picture = self.x
        repeated = self._rows_by(1, lambda v: v.expand(len(x), *v.shape[1:]) if isinstance(v, Tensor) else v * len(x))
        return repeated.put(x.to(picture))

    def _rows_by(self, count: int, change: Callable[[Any], Any]) -> "Inputs":
        """``change`` applied to all that has ``count`` rows: tensors, and beside a list of pictures lists as long."""
        own = self.settled()

        def each(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value) if value.dim() and len(value) == count else value
            if own.takes == "list" and isinstance(value, list) and len(value) == count:
                return change(value)
            return rebuilt(value, lambda _, part: each(part))

        return replace(own, args=tuple(map(each, own.args)), kwargs={k: each(v) for k, v in own.kwargs.items()})

    # --------------------------------------------------------------------------------------- which one is the picture

    @property
    def _place(self) -> Place:
        return self.mapped if isinstance(self.mapped, tuple) else ()

    @property
    def _all(self) -> Sequence[tuple[int | str, Any]]:
        return [*enumerate(self.args), *self.kwargs.items()]

    def _at(self, place: Place) -> Any:
        value: Any = dict(self._all)
        for key in place:
            found = dict(items(value))
            if key not in found:
                raise InputError(f"mapped={self.mapped!r} is not among the inputs: {self}.")
            value = found[key]
        return value

    def _named(self) -> Place:
        return self.mapped if isinstance(self.mapped, tuple) else (self.mapped,)  # type: ignore[return-value]

    def candidates(self, axes: int | None = None) -> list[tuple[Place, Any]]:
        """What could be the pictures: the floating-point tensors, and lists of pictures, largest last."""

        def found(value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
            if _rows(value, axes) or (isinstance(value, Tensor) and value.is_floating_point()):
                yield place, value
                return
            for key, part in items(value):
                yield from found(part, (*place, key))

        given = [one for key, value in self._all for one in found(value, (key,))]
        return sorted(given, key=lambda one: _rank(one[1], axes))

    def _chosen(self, axes: int | None) -> Place:
        given = self.candidates(axes)
        if not given:
            raise InputError(
                f"no floating-point tensor among the inputs ({self}): hand over a batch of pictures (b, c, height, "
                "width), or a picture itself (path, PIL picture, array)."
            )
        if len(given) > 1 and _rank(given[-1][1], axes) == _rank(given[-2][1], axes):
            one, two = (_spoken(place) for place, _ in given[-2:])
            raise InputError(
                f"{one} and {two} could both be the picture that the map lies on ({self}): say which, as "
                f"cl.Inputs(args, kwargs, mapped={_short(given[-2][0])!r})."
            )
        return given[-1][0]

    def rivals(self, axes: int | None = None) -> list[Place]:
        """The other inputs with space, on which the map could lie as well."""
        own = self.settled(axes)._place
        given = ((place, value) for place, value in self.candidates(axes) if place[: len(own)] != own)
        return [place for place, value in given if _rank(value, axes)[1]]

    @property
    def spoken(self) -> str:
        """The name of what the map lies on, for people."""
        return _spoken(self.settled()._place)

    def __str__(self) -> str:
        """What was given, for people."""
        return ", ".join(f"{_spoken((key,))} is {_told(value)}" for key, value in self._all) or "there are none"


def _rows(value: Any, axes: int | None) -> bool:
    """Whether it is a list of pictures without their batch axis."""
    most = 3 if axes is None else axes - 1
    several = isinstance(value, list | tuple) and len(value) > 0
    return several and all(isinstance(v, Tensor) and v.is_floating_point() and v.dim() == most for v in value)


def _rank(value: Any, axes: int | None) -> tuple[bool, bool, int]:
    """Masks and flags are smaller than pictures, and what has the model's own number of axes goes before all."""
    rows = [value] if isinstance(value, Tensor) else list(value)
    dims = rows[0].dim() + (not isinstance(value, Tensor))
    return dims == axes, dims >= 3, sum(v.numel() for v in rows)


def _order(value: Any, channels: int | None) -> Taken:
    """Whether the frames of a video come before its channels: that is where the model's own number of them is."""
    if not isinstance(value, Tensor) or value.dim() != 5 or channels is None or value.shape[2] != channels:
        return "batch"
    if value.shape[1] == channels != _COLOURS:
        return "batch"  # a volume as deep as it has channels: videos are in colour
    if value.shape[1] == channels:
        raise InputError(
            f"of {tuple(value.shape)} either axis could be the {channels} channels: say which, as "
            'cl.Inputs((x,), takes="batch") for (b, c, t, h, w) or takes="frames first" for (b, t, c, h, w).'
        )
    return "frames first"


def _check_picture(value: Any, takes: Taken, given: Inputs) -> None:
    rows = list(value) if isinstance(value, list | tuple) else [value]
    if not rows or not all(isinstance(v, Tensor) and v.is_floating_point() for v in rows):
        raise InputError(f"mapped={given.mapped!r} is no floating-point tensor, so no map can lie on it ({given}).")
    if isinstance(value, Tensor) == (takes == "list"):
        raise InputError(f"takes={takes!r} does not go with {_told(value)}.")
    check_sizes(rows)
    if takes == "frames first" and rows[0].dim() != 5:
        raise InputError(f'takes="frames first" is for videos (b, t, c, h, w); got {_told(value)}.')


def check_sizes(rows: Sequence[Tensor]) -> None:
    """Raises: InputError where pictures are of different sizes, which have no one grid for their maps."""
    sizes = dict.fromkeys("×".join(map(str, v.shape)) for v in rows)
    if len(sizes) > 1:
        raise InputError(
            f"pictures of different sizes ({', '.join(sizes)}) have no one grid for their maps: explain each by "
            "itself, as [cl.explain(model, x[None]) for x in pictures]."
        )


def _read(value: Any, takes: Taken | None) -> Tensor:
    if takes == "list":
        return torch.stack(list(value))
    x: Tensor = value
    return x.movedim(1, 2) if takes == "frames first" else x


def _given_as(x: Tensor, takes: Taken | None, like: Any) -> Any:
    if takes == "list":
        return type(like)(x.unbind())
    return x.movedim(2, 1) if takes == "frames first" else x


def _short(place: Place) -> int | str | Place:
    return place[0] if len(place) == 1 else place


def _spoken(place: Place) -> str:
    first, *inside = place
    return (f"argument {first}" if isinstance(first, int) else repr(first)) + "".join(f"[{key!r}]" for key in inside)


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {'×'.join(map(str, value.shape)) or 'number'}"
    held = [_told(part) for _, part in items(value)]
    return f"{type(value).__name__} of {', '.join(held[:4])}{', …' * (len(held) > 4)}" if held else type(value).__name__
