"""From a raw map to what people look at: separate, pure steps that are recorded when they are taken.

`weigh` is the sum that a class activation map is, `status` says whether it shows anything, `rectify` keeps the
evidence *for*, `unit` brings it to [0, 1] (or [−1, 1]) by a stated scale, `resize` and `lay` put it on the input's grid
and on the pixels of the picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from camlucida.frame import Frame
from camlucida.types import Act, Map, Weights

Status = Literal["ok", "all-negative", "zero gradient", "constant", "no evidence", "non-finite"]


def weigh(weights: Float[Tensor, "b c"], act: Act) -> Map:
    """``Σ_k w_k A_k``: the weighted sum of channels that every class activation map is.

    >>> weigh(torch.tensor([[1.0, -1.0]]), torch.ones(1, 2, 3)).tolist()
    [[0.0, 0.0, 0.0]]
    """
    return torch.einsum("bc,bcz->bz", weights, act.flatten(2)).reshape(-1, *act.shape[2:])


def weigh_many(weights: Weights, act: Act) -> Float[Tensor, "t b *space"]:
    """The maps of many targets from their channel weights, in one product."""
    return torch.einsum("tbc,bcz->tbz", weights, act.flatten(2)).reshape(*weights.shape[:2], *act.shape[2:])


def status(
    map: Map, grad_is_zero: Sequence[bool] | None = None, noise: Sequence[float] | None = None
) -> tuple[Status, ...]:
    """Whether each map shows anything, and if not, why; what stays within its rounding ``noise`` shows nothing.

    >>> status(torch.tensor([[1.0, 2.0], [-1.0, -2.0], [0.0, 0.0]]))
    ('ok', 'all-negative', 'no evidence')
    """
    flat = map.flatten(1)
    zero = [False] * len(flat) if grad_is_zero is None else grad_is_zero
    floor = [0.0] * len(flat) if noise is None else noise
    ends = zip(flat.amin(1).tolist(), flat.amax(1).tolist(), flat.isfinite().all(1).tolist(), strict=True)
    rows = zip(ends, zero, floor, strict=True)
    return tuple(_state(*end, dead, under, flat.shape[1]) for end, dead, under in rows)


def _state(low: float, high: float, finite: bool, dead: bool, floor: float, places: int) -> Status:
    if not finite:
        return "non-finite"
    if max(-low, high) <= floor or low == high == 0:
        return "zero gradient" if dead else "no evidence"
    if low == high and places > 1:
        return "constant"
    return "ok" if high > 0 else "all-negative"


def rectify(map: Map) -> Map:
    """``relu(M)``: the evidence for the answer; what speaks against it becomes zero."""
    return map.relu()


def scale_of(map: Map, signed: bool = False) -> float:
    """The largest value of a map (the largest magnitude, signed): what `unit` divides by; zero for a blank one.

    >>> scale_of(torch.tensor([[1.0, -3.0]])), scale_of(torch.tensor([[1.0, -3.0]]), signed=True)
    (1.0, 3.0)
    """
    finite = map.nan_to_num(0.0, 0.0, 0.0)
    return float((finite.abs() if signed else finite).max().clamp(min=0))


def unit(map: Map, scale: float, signed: bool = False) -> Map:
    """``M / scale`` clipped to [0, 1], or to [−1, 1] signed; a blank or non-finite map becomes zeros, never NaN."""
    values = map.nan_to_num(0.0, 0.0, 0.0)
    if scale <= 0:
        return torch.zeros_like(values)
    peak = float(values.abs().max())
    if peak == 0:
        return values
    # Divided in two steps: maps of 1e-30 and 1e30 come out the same, with no underflow on the way.
    factor = min(peak / scale, torch.finfo(values.dtype).max)
    return ((values / peak) * factor).clamp(-1.0 if signed else 0.0, 1.0)


@dataclass(frozen=True)
class Centres:
    """Where the cells of a grid lie in a picture: cell ``i`` of an axis has its centre at ``start + i·stride``.

    In pixels of the picture, of which number ``k`` is the stretch from ``k`` to ``k + 1``; one number for each axis.
    """

    start: tuple[float, ...]
    stride: tuple[float, ...]

    @classmethod
    def even(cls, size: Sequence[int] | Sequence[float], grid: Sequence[int]) -> "Centres":
        """The cells spread evenly from edge to edge: cell ``i`` at ``(i + ½)·size/grid``.

        >>> Centres.even([224], [7])
        Centres(start=(16.0,), stride=(32.0,))
        """
        stride = tuple(s / g for s, g in zip(size, grid, strict=True))
        return cls(tuple(s / 2 for s in stride), stride)

    def on(self, other: "Centres") -> "Centres":
        """The same centres where the cells of another grid are the pixels.

        >>> Centres((32.0,), (16.0,)).on(Centres((16.0,), (32.0,)))
        Centres(start=(1.0,), stride=(0.5,))
        """
        axes = list(zip(self.start, self.stride, other.start, other.stride, strict=True))
        return Centres(tuple((a - b) / t + 0.5 for a, _, b, t in axes), tuple(s / t for _, s, _, t in axes))

    def __str__(self) -> str:
        return f"stride {_same(self.stride)}, first centre {_same(self.start)}"


def _same(numbers: Sequence[float]) -> str:
    """One number where all axes have it, else all of them."""
    return "×".join(f"{n:g}" for n in (numbers[:1] if len(set(numbers)) == 1 else numbers))


def _between(where: Float[Tensor, " n"], cells: int) -> Float[Tensor, "n cells"]:
    """The matrix of linear interpolation to positions counted in ``cells``, 0 the first; flat beyond the ends."""
    centres = torch.arange(cells, dtype=where.dtype, device=where.device)
    return (1 - (where.clamp(0, cells - 1)[:, None] - centres).abs()).clamp(min=0)


def _spread(at: Float[Tensor, " n"], cells: int) -> Float[Tensor, "n cells"]:
    """`_between` for positions ``at`` in [0, 1] of the whole extent, over which the cells are spread evenly."""
    return _between(at * cells - 0.5, cells)


def _centres(count: int, like: Tensor) -> Float[Tensor, " n"]:
    return (torch.arange(count, dtype=torch.float64, device="cpu").add(0.5) / count).to(like)


def resize(map: Map, size: Sequence[int], centres: Centres | None = None) -> Float[Tensor, "b *full"]:
    """Linear interpolation to ``size`` along every axis, the same beyond the outermost centres; any number of axes.

    Without ``centres`` the cells are spread evenly; with them they lie where they say, in pixels of the new size.

    >>> resize(torch.tensor([[0.0, 1.0]]), [4]).tolist()
    [[0.0, 0.25, 0.75, 1.0]]
    >>> resize(torch.tensor([[0.0, 1.0]]), [4], Centres((0.5,), (2.0,))).tolist()
    [[0.0, 0.5, 1.0, 1.0]]
    """
    for axis, count in enumerate(size, start=1):
        if centres is None:
            matrix = _spread(_centres(count, map), map.shape[axis])
        else:
            at = torch.arange(count, dtype=torch.float64, device="cpu").add(0.5 - centres.start[axis - 1])
            matrix = _between((at / centres.stride[axis - 1]).to(map), map.shape[axis])
        map = torch.movedim(torch.tensordot(map, matrix, ([axis], [1])), -1, axis)
    return map


def lay(map: Float[Tensor, "h w"], frame: Frame) -> tuple[Float[Tensor, "height width"], Bool[Tensor, "height width"]]:
    """The map on the picture's own pixels, and which of them the model saw; unseen ones are zero.

    >>> heat, seen = lay(torch.ones(2, 2), Frame(4, 2, (1.0, 0.0, 3.0, 2.0)))
    >>> seen.int().tolist()
    [[0, 1, 1, 0], [0, 1, 1, 0]]
    """
    left, top, right, bottom = frame.box
    x = (_pixels(frame.width, map) - left) / (right - left)
    y = (_pixels(frame.height, map) - top) / (bottom - top)
    inside_x, inside_y = ((x >= 0) & (x <= 1)), ((y >= 0) & (y <= 1))
    seen = inside_y[:, None] & inside_x[None, :]
    heat = _spread(y, map.shape[0]) @ map @ _spread(x, map.shape[1]).T
    return heat * seen, seen


def _pixels(count: int, like: Tensor) -> Float[Tensor, " n"]:
    return torch.arange(count, dtype=like.dtype, device=like.device) + 0.5
