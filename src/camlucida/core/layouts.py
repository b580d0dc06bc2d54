"""Layouts: from whatever axes a layer gave to ``b c *space``, and the reasoning that finds the right one.

A layout is told from evidence, not from names: the axis a module normalises or convolves over, how the axes compare
with the input's, and the grids that were seen earlier in the same forward pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from camlucida.errors import LayoutError
from camlucida.types import Act

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How one layer's axes are read: ``kind`` with, for tokens, the ``prefix`` to drop and the ``grid`` to restore.

    >>> import torch
    >>> tokens(prefix=1, grid=(2, 3))(torch.zeros(4, 7, 8)).shape
    torch.Size([4, 8, 2, 3])
    """

    kind: str
    prefix: int = 0
    grid: Grid = ()

    def __call__(self, tensor: Tensor) -> Act:
        if self.kind == "channels first":
            return tensor
        if self.kind == "channels last":
            return tensor.movedim(-1, 1)
        places = tensor[:, self.prefix :]
        if places.shape[1] != math.prod(self.grid):
            raise LayoutError(
                f"{tensor.shape[1]} tokens do not make a prefix of {self.prefix} and a grid of {_by(self.grid)}: "
                "pass the layout that fits, as layout=tokens(prefix=…, grid=(…, …))."
            )
        return places.movedim(-1, 1).reshape(len(tensor), -1, *self.grid)

    def __str__(self) -> str:
        return f"tokens(prefix={self.prefix}, grid={_by(self.grid)})" if self.kind == "tokens" else self.kind


channels_first = Layout("channels first")
channels_last = Layout("channels last")


def tokens(prefix: int = 0, grid: Grid = ()) -> Layout:
    """``b (prefix + places) c``: class, distillation and register tokens come first, then the grid row by row."""
    return Layout("tokens", prefix, tuple(grid))


def _by(grid: Sequence[int]) -> str:
    return "×".join(map(str, grid))


def infer(shape: Sequence[int], space: Grid, module: nn.Module | None = None, seen: Sequence[Grid] = ()) -> Layout:
    """The layout of a layer's output of ``shape`` for an input with ``space`` (its height and width, say).

    ``module`` gives evidence by the axis it works on, ``seen`` are grids met earlier in the same pass.

    Raises: LayoutError where the axes do not fit an input of that space.

    >>> str(infer((2, 197, 768), (224, 224)))
    'tokens(prefix=1, grid=14×14)'
    """
    if len(shape) == len(space) + 2:
        return _grid_layout(shape, space, module)
    if len(shape) == 3 and len(space) > 1:
        prefix, grid = _token_grid(shape[1], space, seen)
        return tokens(prefix, grid)
    raise LayoutError(
        f"an output of shape {tuple(shape)} has no axes that match an input of {_by(space)}: "
        "pass layout= to say how to read it, or ask for another layer."
    )


def _grid_layout(shape: Sequence[int], space: Grid, module: nn.Module | None) -> Layout:
    first, last = (_misfit(s, space) for s in (shape[2:], shape[1:-1]))
    axis = _feature_axis(module)
    if first == last == math.inf:
        raise LayoutError(
            f"an output of shape {tuple(shape)} is larger than the input's {_by(space)} on either reading."
        )
    if axis is not None and min(first, last) == (first if axis == 1 else last):
        return channels_first if axis == 1 else channels_last
    return channels_last if last < first else channels_first


def _misfit(grid: Sequence[int], space: Grid) -> float:
    """How far a grid is from the input's proportions, rounding forgiven; infinite where it exceeds the input."""
    if any(g > s for g, s in zip(grid, space, strict=True)):
        return math.inf
    steps = [(s / (g + 1), s / max(g - 1, 0.5)) for g, s in zip(grid, space, strict=True)]
    low, high = max(a for a, _ in steps), min(b for _, b in steps)
    return max(0.0, math.log(low / high))  # zero: one and the same stride explains every axis


def _feature_axis(module: nn.Module | None) -> int | None:
    """The channel axis that a module's own kind implies: 1, −1, or None where it says nothing."""
    if isinstance(module, nn.LayerNorm | nn.Linear | nn.Embedding | nn.RNNBase):
        return -1
    if isinstance(module, nn.modules.conv._ConvNd | nn.modules.batchnorm._NormBase | nn.GroupNorm):
        return 1
    return None


def _token_grid(count: int, space: Grid, seen: Sequence[Grid]) -> tuple[int, Grid]:
    """Prefix and grid of ``count`` tokens: a grid seen earlier, one of its halvings, or one of the input's strides."""
    met = [g for g in seen if len(g) == len(space)]
    halved = [tuple(-(-n // 2**k) for n in g) for g in met for k in range(1, 6)]
    exact = [g for g in (*reversed(met), *halved) if math.prod(g) == count]
    if exact:
        return 0, exact[0]
    near = [g for g in met if 0 < count - math.prod(g) <= max(16, count // 4)]
    pool = near or [g for g in strided_grids(space) if math.prod(g) <= count]
    if not pool:
        raise LayoutError(
            f"{count} tokens fit no grid for an input of {_by(space)}: pass layout=tokens(prefix=…, grid=…)."
        )
    grid = max(pool, key=math.prod)
    return count - math.prod(grid), grid


def strided_grids(space: Grid) -> list[Grid]:
    """Every grid that one stride makes of the input, finest first."""
    strides = sorted({s / n for s in space for n in range(1, s + 1)})
    grids = [tuple(max(1, round(s / stride)) for s in space) for stride in strides]
    return [g for g, after in pairwise([*grids, ()]) if g != after]


def has_space(grid: Sequence[int]) -> bool:
    """Whether there is more than one place to tell apart."""
    return math.prod(grid) > 1
