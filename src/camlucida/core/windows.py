"""Windows that move over places, convolutions and pools: where they look, and how far from there their weights lean.

A mark is put on a window's middle. That is not where it looks, if its weights lean to one side, and trained nets do
lean: against the half pixel by which strides and one-sided padding would move their grids. So the lean of the energy
``Σ w²`` of each overlapping window is added up on the way, in pixels of the input. The middle of an even window lies
between two places, and the mark is put on both; where windows go place by place it is put on the later one, and half a
place of lean makes up for it. So ways that lean differently, as past a block and through it, come to the same places,
and their lean is what lies between.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from camlucida.core.moves import MOVING, close, kind_of, mean

_Shape = tuple[int, ...]
_Node = Any  # a torch.autograd.graph.Node: which fields it has saved depends on its kind
Lean = tuple[float, ...]  # in pixels of each axis

_FILTERS = 4096  # of a convolution that are asked which way they lean
_NEAR = 1.3  # what rounding and padding may make of a stride


def kernel_of(node: _Node) -> _Shape:
    """The sizes of the window that an operation moves over places; none where it has no window."""
    if not hasattr(node, "_saved_stride") or kind_of(node) in MOVING:
        return ()
    weight = getattr(node, "_saved_weight", None)
    return tuple(node._saved_kernel_size if weight is None else weight.shape[2:])


def strides(order: Iterable[_Node], axes: int) -> dict[_Node, tuple[int, ...]]:
    """How many pixels of the input one step of a grid takes by all windows before it; ``order`` begins at the input."""
    found: dict[_Node, tuple[int, ...]] = {}
    for node in order:
        below = next((found[to] for to, _ in node.next_functions if to in found), (1,) * axes)
        for a, k in _along(node, axes):
            below = (*below[:a], below[a] * _each(node, "stride", a - axes, k), *below[a + 1 :])
        found[node] = below
    return found


def lean(node: _Node, so_far: Lean, steps: Sequence[float]) -> Lean:
    """How far ways lean that pass an operation: by half a place where even windows go place by place, and by how far
    the weights of overlapping windows look past the middle. ``steps`` are the pixels between places of what it reads.
    """
    dims, found, energy = len(so_far), list(so_far), None
    for a, k in _along(node, dims):
        step = _each(node, "stride", a - dims, k)
        off = -0.5 if k % 2 == 0 and step == 1 else 0.0
        if k > step and hasattr(node, "_saved_weight"):  # else tiles, or no weights
            energy = _energy(node) if energy is None else energy
            off += _past(energy.movedim(a - dims, 0).reshape(k, -1).sum(1).tolist()) - (k - 1) / 2
        found[a] += off * _each(node, "dilation", a - dims, 1) * steps[a]
    return tuple(found)


def _along(node: _Node, axes: int) -> list[tuple[int, int]]:
    """The axes of the input that a window moves over, and its size there: a signal's pools have one axis more, windows
    on a film's pictures one less.
    """
    kernel = () if getattr(node, "_saved_transposed", False) else kernel_of(node)
    if len(kernel) < min(axes, 2):
        return []
    many = min(axes, len(kernel))
    return list(zip(range(axes - many, axes), kernel[-many:], strict=True))


def pixels(below: Sequence[int], size: Sequence[int], read: _Shape) -> list[float]:
    """The pixels from place to place, by the windows before, unless something else has changed the grid's size, too."""
    even = [n / m for n, m in zip(size, read[-len(size) :], strict=True)]
    return [float(b) if e / _NEAR < b < e * _NEAR else e for b, e in zip(below, even, strict=True)]


def _energy(node: _Node) -> Float[Tensor, "*kernel"]:
    """``Σ w²`` over the filters of a convolution."""
    some: Tensor = node._saved_weight.detach().flatten(0, 1)
    return some[:: max(1, len(some) // _FILTERS)].float().square().sum(0).double()


def _past(line: Sequence[float]) -> float:
    """The middle of weights along one axis, by their energy."""
    whole = sum(line)
    even = (len(line) - 1) / 2
    return sum(e * i for i, e in enumerate(line)) / whole if 0 < whole < math.inf else even


def windowed(node: _Node, mark: Tensor, shape: _Shape) -> Tensor:
    """The mark at the middle of each window, of an even one at both; the later alone where `lean` makes up for it."""
    kernel, pool = kernel_of(node), not hasattr(node, "_saved_weight")
    dims = len(kernel)
    found = close(mark) if pool else mean(mark, -1 - dims)
    if {*kernel, *node._saved_stride} == {1} and mark.shape[-dims:] == shape[-dims:]:
        return found.expand(len(mark), *shape)  # mixes channels alone
    turned = bool(getattr(node, "_saved_transposed", False))
    for axis, k in zip(range(-dims, 0), kernel, strict=True):
        how = k, _each(node, "stride", axis, k), _each(node, "padding", axis, 0), _each(node, "dilation", axis, 1)
        found = _looked(found, axis, (mark.shape[axis], shape[axis]), how, turned)
    return found.expand(len(mark), *shape)


def _each(node: _Node, of: str, axis: int, default: int) -> int:
    """One axis' stride, padding or dilation, as the operation has saved it."""
    saved = getattr(node, f"_saved_{of}", None) or (default,)
    return int(saved[axis] if len(saved) >= -axis else saved[0])


def _looked(mark: Tensor, axis: int, sizes: tuple[int, int], how: tuple[int, int, int, int], turned: bool) -> Tensor:
    """The mark along one axis of ``sizes`` made and read, where each window reads in its middle.

    All that it reads, where it is a transposed convolution's.
    """
    (made, read), (kernel, step, pad, wide) = sizes, how
    if made == read and step == 1 and kernel % 2 and pad == wide * (kernel // 2) and not turned:
        return mark  # each window's middle is its own place
    given = mark.movedim(axis, -1).expand(*mark.movedim(axis, -1).shape[:-1], made)
    found = given.new_zeros(*given.shape[:-1], read)
    for tap in range(kernel) if turned else {kernel // 2, (kernel - (step > 1)) // 2}:
        at = tap * wide - pad  # of the first
        skip = max(0, -(at // step))
        many = min((read if turned else made) - skip, -((at - (made if turned else read)) // step) - skip)
        if many > 0:
            few, far = slice(skip, skip + many), slice(at + skip * step, at + (skip + many - 1) * step + 1, step)
            found[..., few if turned else far] += given[..., far if turned else few]
    return found.clamp_(max=1).movedim(-1, axis)
