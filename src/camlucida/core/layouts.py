"""Layouts: from whatever axes a layer gave to ``b c *space``, and the reasoning that finds the right one.

A layout is told from evidence, not from names: the axis a module normalises or convolves over, how the axes compare
with the input's, and the grids that were seen earlier in the same forward pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor, nn

from camlucida.errors import LayoutError
from camlucida.types import Act

Grid = tuple[int, ...]
POOLS = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)


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
        if tensor.dim() != 3:
            raise LayoutError(f"tokens have three axes (b, places, c); this layer gave {tuple(tensor.shape)}.")
        places = tensor[:, self.prefix :]
        if places.shape[1] != math.prod(self.grid):
            raise LayoutError(
                f"{tensor.shape[1]} tokens do not make a prefix of {self.prefix} and a grid of {_by(self.grid)}: "
                "say how to read them, as layer=(name, tokens(prefix=…, grid=(…, …)))."
            )
        return places.movedim(-1, 1).reshape(len(tensor), -1, *self.grid)

    def places(self, shape: Sequence[int]) -> Grid:
        """The grid of an output of such a shape."""
        if self.kind == "tokens":
            return self.grid
        return tuple(shape[2:] if self.kind == "channels first" else shape[1:-1])

    def __str__(self) -> str:
        return f"tokens(prefix={self.prefix}, grid={_by(self.grid)})" if self.kind == "tokens" else self.kind


channels_first = Layout("channels first")
channels_last = Layout("channels last")


def tokens(prefix: int = 0, grid: Grid = ()) -> Layout:
    """``b (prefix + places) c``: class, distillation and register tokens come first, then the grid row by row."""
    return Layout("tokens", prefix, tuple(grid))


def _by(grid: Sequence[int]) -> str:
    return "×".join(map(str, grid))


def infer(
    shape: Sequence[int],
    space: Grid,
    module: nn.Module | None = None,
    seen: Sequence[Grid] = (),
    cut: Sequence[Grid] = (),
) -> Layout:
    """The layout of a layer's output of ``shape`` for an input with ``space`` (its height and width, say).

    ``module`` gives evidence by the axis it works on, ``seen`` are grids met earlier in the same pass, ``cut`` those of
    tokens met there.

    Raises: LayoutError where the axes do not fit an input of that space.

    >>> str(infer((2, 197, 768), (224, 224)))
    'tokens(prefix=1, grid=14×14)'
    """
    if len(shape) == len(space) + 2:
        layout = _grid_layout(shape, space, module)
        other = channels_last if layout == channels_first else channels_first
        if _stranger(shape, space, module, [*seen, *cut], layout):
            if _feature_axis(module) is None and other.places(shape) in seen:
                return other
            met = _by([*cut, *seen][-1])
            raise LayoutError(
                f"an output of shape {tuple(shape)} is no grid of places that follows from the {met} met before: say "
                "how to read it, as layer=(name, function to channels first), or ask for another layer."
            )
        return layout
    if len(shape) == 3 and len(space) > 1:
        prefix, grid = _token_grid(shape, space, seen)
        return tokens(prefix, grid)
    raise LayoutError(
        f"an output of shape {tuple(shape)} has no axes that match an input of {_by(space)}: "
        "say how to read it, as layer=(name, function to channels first), or ask for another layer."
    )


def _grid_layout(shape: Sequence[int], space: Grid, module: nn.Module | None) -> Layout:
    first, last = (_misfit(tuple(s), space) for s in (shape[2:], shape[1:-1]))
    if first == last == math.inf:
        raise LayoutError(
            f"an output of shape {tuple(shape)} is larger than the input's {_by(space)} on either reading."
        )
    own = _feature_axis(module)
    if own == 1 and shape[1] == _width(module):
        return channels_first  # whatever its size: a padded convolution's is larger than the input
    if own is not None and math.isfinite(first if own == 1 else last):
        return channels_first if own == 1 else channels_last  # the axis that a module works on is no guess
    if first == last:
        return channels_last if _inner_axis(module) == -1 else channels_first
    return channels_last if last < first else channels_first


def _stranger(
    shape: Sequence[int], space: Grid, module: nn.Module | None, seen: Sequence[Grid], layout: Layout
) -> bool:
    """Whether a grid has neither the input's proportions nor those of one met before: heads × tokens, say."""
    grid = layout.places(shape)
    if not seen or not has_space(grid) or _feature_axis(module) == 1 or _misfit(grid, space) == 0:
        return False
    same = [met for met in seen if len(met) == len(grid)]
    return not any(all(g in _shrunk(n) for g, n in zip(grid, met, strict=True)) for met in same)


@lru_cache(1024)
def _shrunk(count: int) -> set[int]:
    """An axis of places and all that is left of it after strides of two, rounded either way."""
    return {count} | {n for k in range(1, 16) for n in (count // 2**k, -(-count // 2**k)) if n > 0}


def plain(shape: Sequence[int], space: Grid, module: nn.Module | None) -> bool:
    """Whether a shape needs no more evidence: its module says its axis, or only channels first fits, and exactly."""
    if len(shape) != len(space) + 2:
        return False
    first, last = (_misfit(tuple(s), space) for s in (shape[2:], shape[1:-1]))
    own = _feature_axis(module)
    return own == 1 or (own == -1 and last == 0) or (own is None and first == 0 < last)


@lru_cache(4096)
def _misfit(grid: Grid, space: Grid) -> float:
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
    if isinstance(module, (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm, *POOLS)):
        return 1
    return None


def _width(module: nn.Module | None) -> int | None:
    """How many channels a convolution or normalisation says it gives."""
    said = (getattr(module, name, None) for name in ("out_channels", "num_features", "num_channels"))
    return next((n for n in said if isinstance(n, int)), None)


def _inner_axis(module: nn.Module | None) -> int | None:
    """The channel axis of the last module inside that has one."""
    inside = reversed(list(module.modules())) if module is not None else ()
    return next((axis for m in inside if (axis := _feature_axis(m)) is not None), None)


_PREFIX = 16  # class, distillation and register tokens; more are something else


def _token_grid(shape: Sequence[int], space: Grid, seen: Sequence[Grid]) -> tuple[int, Grid]:
    """Prefix and grid of tokens: a grid seen earlier, one of its halvings, or one of the input's whole strides."""
    count, width = shape[1:]
    met = [g for g in seen if len(g) == len(space)]
    sizes = set(map(math.prod, met))
    if width in sizes and not any(0 <= count - s <= _PREFIX for s in sizes):
        raise LayoutError(
            f"{tuple(shape)} looks like places last: pass the layer as (layer, function to channels first)"
        )
    halved = [tuple(-(-n // 2**k) for n in g) for g in met for k in range(1, 6)]
    for grids, most in (((*reversed(met), *halved), 0), (met, _PREFIX), (strided_grids(space), _PREFIX)):
        fit = [g for g in grids if 0 <= count - math.prod(g) <= most and has_space(g)]
        if fit:
            grid = max(fit, key=math.prod)
            return count - math.prod(grid), grid
    raise LayoutError(
        f"{count} tokens fit no grid for an input of {_by(space)}: "
        "pass the layer as (layer, tokens(prefix=…, grid=(…, …)))"
    )


@lru_cache(256)
def strided_grids(space: Grid) -> tuple[Grid, ...]:
    """Every grid that a whole stride cuts the input into without a rest, finest first; an axis of one place stays.

    >>> strided_grids((1, 4, 6))
    ((1, 4, 6), (1, 2, 3))
    """
    long = [s for s in space if s > 1] or list(space)
    strides = [n for n in range(1, min(long) + 1) if all(s % n == 0 for s in long)]
    return tuple(tuple(s // n if s > 1 else 1 for s in space) for n in strides)


def has_space(grid: Sequence[int]) -> bool:
    """Whether there is more than one place to tell apart."""
    return math.prod(grid) > 1
