"""Marks on cells, carried back through what only moves numbers, and kept small on the way.

A mark is the same all along most axes, channels above all: there it is a view of one place. Most moves are told by
sizes alone, and leave it one; the others are put to the operation's own backward.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_Shape = tuple[int, ...]
_Node = Any  # a torch.autograd.graph.Node

MOVING = frozenset(
    "View UnsafeView ReshapeAlias AsStrided Permute Transpose T Slice Select Unbind Split SplitWithSizes Cat Stack "
    "Expand Repeat Squeeze Unsqueeze ConstantPadNd ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D "
    "ReplicationPad2D ReplicationPad3D Roll Flip Index IndexSelect Gather Im2Col Col2Im Unfold PixelShuffle "
    "PixelUnshuffle Mean Sum AdaptiveAvgPool2D AdaptiveAvgPool3D Diagonal NativeChannelShuffle UpsampleNearest1D "
    "UpsampleNearest2D UpsampleNearest3D UpsampleLinear1D UpsampleBilinear2D UpsampleTrilinear3D "
    "UpsampleBicubic2D".split()
)  # what their backward gives for a mark depends on no value


def kind_of(node: _Node) -> str:
    """The operation that a node stands for."""
    return str(node.name()).partition("Backward")[0]


def moved(
    node: _Node, kind: str, given: Mapping[int, Tensor], shapes: Sequence[_Shape | None]
) -> Iterator[Tensor | None]:
    """Where numbers came from: the marks ``cells *shape`` at what a moving operation read, from those at what it made.

    ``given`` are the marks by the number of the thing made; ``shapes`` of what is read, None where it is of no use.
    """
    if len(shapes) == 1 and shapes[0] is not None and kind in _PLAIN:
        found = _PLAIN[kind](node, given[0], shapes[0])
        if found is not None:
            yield found
            return
    if kind == "Cat" and all(s is not None and len(s) == given[0].dim() - 1 for s in shapes):
        yield from _parted(node, given[0], [s for s in shapes if s is not None])
    else:
        yield from _asked(node, kind, given)


def _asked(node: _Node, kind: str, given: Mapping[int, Tensor]) -> Iterator[Tensor | None]:
    """As the operation's own backward tells it."""
    many, made = len(next(iter(given.values()))), node._input_metadata
    rows = []
    for k in range(many):
        row = node(*(given[j][k].to(m.dtype) if j in given else None for j, m in enumerate(made)))
        rows.append(row if isinstance(row, tuple) else (row,))
    for parts in zip(*rows, strict=True):
        found = None if parts[0] is None else torch.stack(parts).float().clamp_(0, 1)
        if found is not None and kind == "Sum":
            found = found * given[0][0].numel() / found[0].numel()
        yield None if found is None else _folded(found)


# ---------------------------------------------------------------------------------------------- told by the sizes alone


def _reshaped(_: _Node, mark: Tensor, shape: _Shape) -> Tensor:
    return mark.reshape(len(mark), *shape)


def _permuted(node: _Node, mark: Tensor, shape: _Shape) -> Tensor:
    dims = _axes(node._saved_dims, len(shape))
    return mark.permute(0, *(1 + dims.index(a) for a in range(len(shape))))


def _transposed(node: _Node, mark: Tensor, shape: _Shape) -> Tensor:
    one, two = _axes((node._saved_dim0, node._saved_dim1), len(shape))
    return mark.transpose(1 + one, 1 + two)


def _cropped(node: _Node, mark: Tensor, shape: _Shape) -> Tensor | None:
    if min(node._saved_pad) < 0:
        return None
    for axis, before in enumerate(node._saved_pad[::2], start=1):
        mark = mark.narrow(-axis, before, shape[-axis])
    return mark


def _sliced(node: _Node, mark: Tensor, shape: _Shape) -> Tensor:
    (axis,) = _axes([node._saved_dim], len(shape))
    return _placed(mark, 1 + axis, shape, slice(node._saved_start, node._saved_end, node._saved_step))


def _selected(node: _Node, mark: Tensor, shape: _Shape) -> Tensor:
    (axis,) = _axes([node._saved_dim], len(shape))
    (place,) = _axes([node._saved_index], shape[axis])
    return _placed(mark.unsqueeze(1 + axis), 1 + axis, shape, slice(place, place + 1))


def _parted(node: _Node, mark: Tensor, shapes: Sequence[_Shape]) -> Iterator[Tensor]:
    """Each thing's own part of what they were joined to."""
    (axis,) = _axes([node._saved_dim], mark.dim() - 1)
    yield from mark.split([shape[axis] for shape in shapes], 1 + axis)


def _placed(mark: Tensor, axis: int, shape: _Shape, part: slice) -> Tensor:
    """The mark on a part of one axis, nothing on the rest of it."""
    few = close(mark)
    found = few.new_zeros([*few.shape[:axis], shape[axis - 1], *few.shape[axis + 1 :]])
    found.movedim(axis, 0)[part] = few.movedim(axis, 0)
    return found.expand(len(mark), *shape)


def _spread(node: _Node, mark: Tensor, shape: _Shape) -> Tensor | None:
    """What a mean or a sum over whole axes dilutes among all that it mixes."""
    axes = _axes(getattr(node, "_saved_dim", None) or (), len(shape)) or range(len(shape))
    one = mark.reshape(len(mark), *(1 if a in axes else n for a, n in enumerate(shape)))
    return (close(one) / math.prod(shape[a] for a in axes)).expand(len(mark), *shape)


def _coarser(_: _Node, mark: Tensor, shape: _Shape) -> Tensor | None:
    """Of all places that copy one, the strongest."""
    few = close(mark)
    for axis, (made, read) in enumerate(zip(mark.shape[1:], shape, strict=True), start=1):
        if made % read:
            return None
        if made != read and few.shape[axis] > 1:
            few = few.unflatten(axis, (read, made // read)).amax(axis + 1)
    return few.expand(len(mark), *shape)


_PLAIN: Mapping[str, Callable[[_Node, Tensor, _Shape], Tensor | None]] = {
    **dict.fromkeys(("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze"), _reshaped),
    **{"Permute": _permuted, "Transpose": _transposed, "ConstantPadNd": _cropped, "Slice": _sliced},
    **{"Select": _selected, "Mean": _spread, "Sum": _spread},
    **dict.fromkeys(("UpsampleNearest1D", "UpsampleNearest2D", "UpsampleNearest3D"), _coarser),
}


def _axes(saved: Iterable[int], count: int) -> list[int]:
    """Axes, or places on one, counted from the front: nodes save those that count from the end as 64 bits unsigned."""
    return [(a - (1 << 64) if a >= 1 << 63 else a) % count for a in saved]


# ------------------------------------------------------------------------------------- marks the same all along an axis


def close(mark: Tensor) -> Tensor:
    """A mark without its copies: axes along which it is only expanded have one place."""
    for axis, (step, many) in enumerate(zip(mark.stride(), mark.shape, strict=True)):
        mark = mark.narrow(axis, 0, 1) if step == 0 and many > 1 else mark
    return mark


def _folded(mark: Tensor) -> Tensor:
    """The same mark, copies of one place along each axis along which it is the same."""
    one = mark
    for axis in range(1, mark.dim() if mark.numel() else 1):
        first = one.narrow(axis, 0, 1)
        one = first if bool((one == first).all()) else one
    return one.expand(mark.shape)


def mean(mark: Tensor, axis: int) -> Tensor:
    return mark.narrow(axis, 0, 1) if mark.stride(axis) == 0 else close(mark).mean(axis, keepdim=True)


def most(mark: Tensor) -> float:
    return float(close(mark).max())


def stronger(one: Tensor, two: Tensor) -> Tensor:
    return torch.maximum(close(one), close(two)).expand(one.shape)
