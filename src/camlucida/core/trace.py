"""Where the cells of a layer's grid look, read off the graph that a forward pass left, without a further pass.

A mark is put on one cell and carried back to the input, operation by operation. A window (convolution, pool) hands it
to its middle; what only moves numbers is asked where each came from; what mixes (a mean over places, attention) dilutes
it among all that it mixes. What arrives undiluted came by the way on which places are kept apart, and the middle of it
is the cell's centre: whatever padding and stride did to it, and also where the field of view is larger than the
picture, whose borders would bend any measurement.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from camlucida.core import windows
from camlucida.core.moves import MOVING, close, kind_of, mean, most, moved, stronger
from camlucida.core.windows import Lean
from camlucida.maps import Centres
from camlucida.types import Act

_Shape = tuple[int, ...]
_Node = Any  # a torch.autograd.graph.Node: which fields it has saved depends on its kind
_Way = tuple[int, Tensor, Lean]  # the number of the thing that a node made, the mark that arrived there, the lean

_PRODUCTS = frozenset("Addmm Mm Bmm Baddbmm".split())
_PLACEWISE = frozenset("Add Sub Mul Div".split())
_UNDILUTED = 0.5  # of the strongest mark


def centres(act: Act, leaf: Tensor) -> Centres | None:
    """The centres of the cells of ``act`` ``b c *space`` in the input ``leaf`` ``b ch *full``, from the graph of act.

    None where it does not tell: no way back on which places stay apart, or cells that lie on no regular grid.

    >>> x = torch.zeros(1, 1, 8, requires_grad=True)
    >>> centres(torch.nn.functional.conv1d(x.clone(), torch.ones(1, 1, 3), stride=2, padding=1), x)
    Centres(start=(0.5,), stride=(2.0,))
    """
    grid, size = tuple(act.shape[2:]), tuple(leaf.shape[2:])
    if len(grid) != len(size):
        return None
    low, high = [n // 5 for n in grid], [n - 1 - n // 5 for n in grid]
    cells = [low, *([*low[:k], high[k], *low[k + 1 :]] for k in range(len(grid)))]
    cells.append([(a + b) // 2 for a, b in zip(low, high, strict=True)])
    for attention in (False, True):  # mostly there is a way round it, and then it need not be gone
        arrived, lean = _carried(act, cells, leaf, attention)
        points = [p for one in arrived if (p := _middle(one, grid)) is not None]
        if len(points) == len(cells):
            return _regular(torch.tensor(cells, dtype=torch.float64), torch.stack(points), size, lean)
        if arrived and all(float(one.max()) == 1 for one in arrived):
            break  # more ways would only spread it further
    return None


def _middle(mark: Float[Tensor, "*full"], grid: Sequence[int]) -> Float[Tensor, " axes"] | None:
    """The middle of what arrived undiluted; None where that is nothing, or comes from all over the picture."""
    strongest = float(mark.max())
    if not strongest:
        return None
    lit = (mark >= _UNDILUTED * strongest).nonzero().double()
    wide = lit.amax(0) - lit.amin(0) + 1
    most = [max(2 * s / n, s / 4) for s, n in zip(mark.shape, grid, strict=True)]
    return None if bool((wide > torch.tensor(most)).any()) else lit.mean(0).cpu() + 0.5


def _regular(
    cells: Float[Tensor, "k axes"], points: Float[Tensor, "k axes"], size: Sequence[int], lean: Lean
) -> Centres | None:
    """The grid through the first cell and one further along each axis, if the last cell lies on it and all in sight."""
    axes = range(len(size))
    wide = [float(cells[1 + k, k] - cells[0, k]) for k in axes]
    far = [float(points[1 + k, k] - points[0, k]) for k in axes]
    step = torch.tensor([f / w if w else float(s) for f, w, s in zip(far, wide, size, strict=True)]).double()
    start = points[0] - cells[0] * step
    off = (start + cells * step - points).abs()
    count = cells[1:-1].diagonal() + cells[0]  # the index of the last cell
    out = (start < -step / 2) | (start + count * step > torch.tensor(size) + step / 2)
    if bool((step <= 0).any() or (off > step / 4).any() or out.any()):
        return None
    return Centres(tuple((start + start.new_tensor(lean).round(decimals=3)).tolist()), tuple(step.tolist()))


# -------------------------------------------------------------------------------------------------------- the way back


def _carried(
    act: Act, cells: Sequence[Sequence[int]], leaf: Tensor, attention: bool
) -> tuple[Sequence[Float[Tensor, "*full"]], Lean]:
    """What arrives at the pixels of the first picture from a mark on each cell of its grid, and how far ways leant."""
    order = _order(act.grad_fn, leaf)
    mark = torch.zeros(len(cells), len(act), 1, *act.shape[2:], dtype=torch.float32, device=act.device)
    for k, cell in enumerate(cells):
        mark[(k, 0, 0, *cell)] = 1.0
    lean = (0.0,) * (leaf.dim() - 2)
    arrived: dict[_Node, list[_Way]] = {act.grad_fn: [(act.output_nr, mark.expand(len(cells), *act.shape), lean)]}
    strides = windows.strides(reversed(order), len(lean))
    for node in order:
        if node not in arrived:
            continue
        given, leant = _joined(arrived.pop(node))
        if getattr(node, "variable", None) is leaf:
            return list(close(given[0])[:, 0].amax(1).expand(len(cells), *leaf.shape[2:])), leant
        shapes = _read(node, order, attention)
        if shapes[0] is not None and len(shapes[0]) > len(lean):
            below = strides[node.next_functions[0][0]]
            leant = windows.lean(node, leant, windows.pixels(below, leaf.shape[2:], shapes[0]))
        for (to, number), back in zip(node.next_functions, _back(node, given, shapes), strict=False):
            if to in order and back is not None:
                arrived.setdefault(to, []).append((number, back, leant))
    return [], lean


def _joined(ways: Sequence[_Way]) -> tuple[dict[int, Tensor], Lean]:
    """The strongest of what arrived at each thing that an operation made, and of how far ways leant, the mean."""
    number, back, lean = ways[0]
    held = {number: back}
    for number, back, leant in ways[1:]:
        if leant != lean:
            own, strongest = most(back), max(map(most, held.values()))
            share = own / ((own + strongest) or 1.0)
            lean = tuple(a * share + b * (1 - share) for a, b in zip(leant, lean, strict=True))
        held[number] = stronger(held[number], back) if number in held else back
    return held, lean


def _read(node: _Node, order: Collection[_Node], attention: bool) -> list[_Shape | None]:
    """The shapes of what an operation read; None for what does not come from the input, or is not gone through."""
    shapes = [_shape(to, number) if to in order else None for to, number in node.next_functions]
    if attention:
        return shapes
    if _attends(node, shapes):
        return [None] * len(shapes)
    return _kept(shapes) if kind_of(node) in _PLACEWISE and None not in shapes else shapes


def _attends(node: _Node, shapes: Sequence[_Shape | None]) -> bool:
    """Whether places are mixed by what the input itself says: two factors that both come from it."""
    kind = kind_of(node)
    return kind.startswith("ScaledDot") or (kind in _PRODUCTS and None not in shapes[-2:])


def _kept(shapes: Sequence[_Shape | None]) -> list[_Shape | None]:
    """Of several things the one in full, where others are spread over its places to change it: gates, means."""
    full = max(math.prod(s or ()) for s in shapes)
    return [s if math.prod(s or ()) == full else None for s in shapes]


def _order(root: _Node, leaf: Tensor) -> dict[_Node, None]:
    """The nodes that lead to the input, each before those that it reads from."""
    leads: dict[_Node, bool] = {}
    reads: dict[_Node, list[_Node]] = {}
    waiting = [root]
    while waiting:
        node = waiting[-1]
        if node is None or node in leads:
            waiting.pop()
        elif node in reads:
            after = reads[node]
            leads[node] = any(leads[to] for to in after) if after else getattr(node, "variable", None) is leaf
        else:
            reads[node] = [to for to, _ in node.next_functions if to is not None]
            waiting.extend(reads[node])
    return dict.fromkeys(node for node in reversed(leads) if leads[node])


def _back(node: _Node, given: dict[int, Tensor], shapes: Sequence[_Shape | None]) -> Iterator[Tensor | None]:
    """The mark at each of the tensors of ``shapes`` that an operation read, from those at what it made."""
    kind, mark = kind_of(node), next(iter(given.values()))
    if kind in MOVING:
        yield from moved(node, kind, given, shapes)
    elif kind.startswith("ScaledDot"):
        yield _same(mark, shapes[0])
    elif kind in _PRODUCTS:
        yield from (_same(mark, s) for s in shapes[:-2])
        yield from _factors(mark, *shapes[-2:])
    elif hasattr(node, "_saved_stride"):
        yield None if shapes[0] is None else windows.windowed(node, mark, shapes[0])
    else:
        yield from (_same(mark, s) for s in shapes)


def _factors(mark: Tensor, left: _Shape | None, right: _Shape | None) -> Iterator[Tensor | None]:
    """The marks of both factors of a product of matrices: rows of the left one are places, columns of the right one.

    Where both come from the input it is attention: what asks keeps its place, and what answers is all mixed.
    """
    yield None if left is None else mean(mark, -1).expand(len(mark), *left)
    yield None if right is None or left is not None else mean(mark, -2).expand(len(mark), *right)


def _shape(node: _Node, number: int) -> _Shape:
    variable = getattr(node, "variable", None)
    return tuple(node._input_metadata[number].shape if variable is None else variable.shape)


def _same(mark: Tensor, shape: _Shape | None) -> Tensor | None:
    """The mark of an operation that works place by place; of what it spread over places, the strongest."""
    if shape is None or len(shape) >= mark.dim():
        return None
    if shape == mark.shape[1:]:
        return mark
    own = (1,) * (mark.dim() - 1 - len(shape)) + shape
    if any(n not in (1, m) for n, m in zip(own, mark.shape[1:], strict=True)):
        return None  # an operation unknown here that changes shapes: whatever came by it is given up
    over = [a for a, (n, m) in enumerate(zip(own, mark.shape[1:], strict=True), start=1) if n != m]
    return (close(mark).amax(over, keepdim=True) if over else mark).expand(len(mark), *own).reshape(len(mark), *shape)
