"""From fully connected to global average pooling, and from fully connected to convolutional: the model stays as it is.

`to_gap` throws the fully connected layers away and puts a GAP head in their place, which then has to be trained.
`conv_head` keeps them and what they have learnt, written as convolutions, so that larger pictures give maps of logits.
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from camlucida.core.capture import Inputs, run
from camlucida.core.scope import named, untouched, unwrap
from camlucida.errors import ModelError
from camlucida.gap.heads import CONV_KINDS, CONVS, GAPLinear
from camlucida.gap.kinds import ADAPTIVE, ELEMENTWISE, OVER_CLASSES, PASSING, is_pointwise
from camlucida.gap.net import GAPNet, Report
from camlucida.gap.pooling import GlobalAveragePooling
from camlucida.gap.split import Step, same, split

_POOLS = (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_AVERAGES = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_MAXIMA = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}

Grid = tuple[int, ...]
N = TypeVar("N", bound=nn.Module)


@torch.inference_mode(False)
def to_gap(
    model: nn.Module, num_classes: int, *, finer: bool = False, freeze: bool = False, probe: Tensor | None = None
) -> GAPNet:
    """A copy of a model whose fully connected head is replaced by `GAPLinear`, its trunk's weights kept.

    ``logit = W⟨trunk(x)⟩ + b`` with new ``W`` and ``b``; ``net.report`` says what it saves. The head is found by
    running the model once, on ``probe`` (a batch it takes) where no common size fits; pools that only fed the flatten
    go with it. ``finer`` removes the last pool or stride, so that the maps have as many more places; ``freeze`` keeps
    the trunk as it is in training, else its weights are trainable as they were. [zhou2016]

    Raises: ModelError where no head is found, or no stride for ``finer``; it names what was seen.

    >>> fc = nn.Sequential(
    ...     nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(),
    ...     nn.Linear(64, 10))
    >>> print(to_gap(fc, 10, finer=True).report)
    33,706 → 314 parameters (99.1 % saved; 224 kept), maps 8×8 → 32×32 (changed: 2)
    """
    parts = split(model, probe, classifier=True)
    trunk = copy.deepcopy(parts.trunk)
    changed = _refined(trunk, parts.x) if finer else ()
    with untouched(trunk, parts.x.device):
        act = trunk(parts.x.clone()) if finer else parts.act
    before, grid = tuple(parts.act.shape[2:]), tuple(act.shape[2:])
    if finer and math.prod(grid) <= math.prod(before):
        raise ModelError(f"without the stride of {', '.join(changed)} the maps are {_by(grid)}, no finer.")
    head = GAPLinear(act.shape[1], num_classes).to(act)
    kept = _count(trunk)
    report = Report(_count(unwrap(model)), kept + _count(head), kept, before, grid, changed)
    return _in_mode(GAPNet(trunk, head, frozen=freeze, report=report), model)


@torch.inference_mode(False)
def conv_head(model: nn.Module, *, probe: Tensor | None = None) -> nn.Sequential:
    """A copy of a model whose flatten and fully connected layers are convolutions: logits at every place.

    A linear layer over flattened maps ``b c h w`` is a convolution with a kernel of ``h w``, the next ones are 1×1.
    Shapes: ``b k 1 1`` at the size of ``probe``, where it equals the model, ``b k h' w'`` for larger pictures, one
    place for each position of the window. ``probe`` defaults to a batch of the first common size that the model takes;
    an adaptive pool is part of the window at that size.

    Raises: ModelError where the head holds anything else; it names the module.

    >>> fc = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 28 * 28, 10)).eval()
    >>> dense, x = conv_head(fc), torch.rand(1, 3, 28, 28)
    >>> torch.allclose(dense(x).flatten(1), fc(x), atol=1e-5), tuple(dense(torch.rand(1, 3, 30, 40)).shape)
    (True, (1, 10, 3, 13))
    """
    parts = split(model, probe)
    head = _Dense(tuple(parts.act.shape[2:])).of(parts.tail)
    dense = _in_mode(nn.Sequential(OrderedDict(features=copy.deepcopy(parts.trunk), head=head)), model)
    with untouched(dense, parts.x.device):
        found = dense(parts.x.clone())
    if not same(found.flatten(1), parts.output):
        kinds = ", ".join(f"{name} ({type(m).__name__})" for name, m in parts.tail)
        raise ModelError(f"the head's convolutional form gives other numbers than the head itself: {kinds}.")
    return dense


def _in_mode(net: N, model: nn.Module) -> N:
    """In evaluation mode like the model; in a training one each copied module keeps its own mode."""
    return net if model.training else net.eval()


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---------------------------------------------------------------------------------------------------- finer maps


def _refined(trunk: nn.Module, x: Tensor) -> tuple[str, ...]:
    """Take the last step down in resolution out of a trunk, in place, and name what was changed."""
    down, grid = _steps_down(trunk, x)
    if not down or any(made > 1.5 * now for made, now in zip(down[-1][3], grid, strict=True)):
        at = f" (the last one, {down[-1][0]}, is not what makes them {_by(grid)})" if down else ""
        raise ModelError(f"finer=True found no pool and no strided convolution that leads to the last maps{at}.")
    last = [(name, module) for name, module, *grids in down if grids == list(down[-1][2:])]
    for name, module in last:  # a shortcut beside the last stage takes the same step
        if isinstance(module, CONV_KINDS):
            module.stride = (1,) * len(module.stride)
        else:
            parent, _, child = name.rpartition(".")
            setattr(trunk.get_submodule(parent), child, nn.Identity())
    _check_runs(trunk, x, [name for name, _ in last])
    return tuple(name for name, _ in last)


def _steps_down(trunk: nn.Module, x: Tensor) -> tuple[list[tuple[str, nn.Module, Grid, Grid]], Grid]:
    """Strided pools and convolutions in the order of running, with the grids before and after; the last maps' grid."""
    with run(trunk, Inputs((x,)), (), spy=list(named(trunk))) as tape:
        steps = [
            (c.name, c.module, tuple(c.given.shape[2:]), tuple(c.feature.shape[2:]))
            for c in tape.calls
            if isinstance(c.module, (*_POOLS, *CONV_KINDS)) and c.given is not None and c.feature is not None
        ]
        grid = tuple(tape.output.shape[2:])
    return [s for s in steps if s[0] and max(_each(s[1].stride)) > 1], grid


def _by(grid: Grid) -> str:
    return "×".join(map(str, grid))


def _check_runs(trunk: nn.Module, x: Tensor, changed: Sequence[str]) -> None:
    try:
        with untouched(trunk, x.device):
            trunk(x.clone())
    except RuntimeError as fault:
        raise ModelError(f"without the stride of {', '.join(changed)} the trunk does not run: {fault}") from fault


def _each(stride: Any) -> tuple[int, ...]:
    return stride if isinstance(stride, tuple) else (int(stride),)


# ----------------------------------------------------------------------------------------- heads as convolutions


@final
class _Dense:
    """Writes a head as convolutions, module by module; ``window`` is what is still to be taken in at once."""

    def __init__(self, window: Grid) -> None:
        self.window, self.dims = window, len(window)
        self.pool: nn.Module | None = None  # an adaptive pool that the next linear layer takes into its kernel

    def of(self, tail: Sequence[Step]) -> nn.Sequential:
        layers = [layer for name, module in tail for layer in self._layers(name, module)]
        if math.prod(self.window) > 1:
            raise ModelError(f"the head ends in flattened maps of {self.window}: no linear layer takes them in.")
        return nn.Sequential(*layers)

    def _layers(self, name: str, module: nn.Module) -> Sequence[nn.Module]:
        if isinstance(module, nn.Flatten):
            return ()
        if isinstance(module, (*ADAPTIVE, GlobalAveragePooling)):
            return self._pooled(name, module)
        if isinstance(module, nn.Linear):
            return (self._convolution(module),)
        if self.pool is None and isinstance(module, (*ELEMENTWISE, *OVER_CLASSES, nn.BatchNorm1d)):
            return (self._alike(module),)
        if isinstance(module, PASSING) or (is_pointwise(module) and math.prod(self.window) == 1):
            return (copy.deepcopy(module),)
        raise ModelError(f"{name} ({type(module).__name__}) in the head has no convolutional form: {module}")

    def _pooled(self, name: str, module: nn.Module) -> Sequence[nn.Module]:
        after = tuple(module(torch.zeros(1, 1, *self.window)).shape[2:]) or (1,) * self.dims
        if after == self.window:
            return ()
        if math.prod(after) > 1:
            if isinstance(module, nn.modules.pooling._AdaptiveMaxPoolNd):
                raise ModelError(f"{name} makes {after} maxima of {self.window} places, which is no convolution.")
            self.pool = module
            return ()
        kinds = _MAXIMA if isinstance(module, nn.modules.pooling._AdaptiveMaxPoolNd) else _AVERAGES
        kernel, self.window = self.window, (1,) * self.dims
        return (kinds[self.dims](kernel, stride=1),)

    @torch.no_grad()
    def _convolution(self, linear: nn.Linear) -> nn.Module:
        """The linear layer as a convolution with the window as kernel; a pool before it is folded into the weights."""
        kernel = _unpooled(linear.weight, self.pool, self.window)
        with torch.device("meta"):
            conv = CONVS[self.dims](kernel.shape[1], linear.out_features, self.window)
        conv.weight = nn.Parameter(kernel, linear.weight.requires_grad)
        bias = linear.bias
        conv.bias = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)
        self.pool, self.window = None, (1,) * self.dims
        return conv

    def _alike(self, module: nn.Module) -> nn.Module:
        """The same for maps: what acts on each number stays, what acts along the channels is told where they are."""
        made = copy.deepcopy(module)
        if isinstance(made, nn.Softmax | nn.LogSoftmax):
            made.dim = 1
        if not isinstance(module, nn.BatchNorm1d):
            return made
        norm = _NORMS[self.dims](
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        ).to(module.weight if module.affine else module.running_mean)
        norm.load_state_dict(module.state_dict())
        return norm.train(module.training)


def _unpooled(weight: Float[Tensor, "o i"], pool: nn.Module | None, window: Grid) -> Float[Tensor, "o c *window"]:
    """Weights over pooled places as weights over the places themselves: a mean is linear."""
    places = math.prod(window)
    if pool is None:
        return weight.detach().reshape(len(weight), -1, *window).clone()
    each = torch.eye(places, dtype=weight.dtype, device=weight.device).reshape(places, 1, *window)
    share = pool(each).flatten(1)
    by_pooled = weight.detach().reshape(len(weight), -1, share.shape[1])
    kernel: Tensor = by_pooled @ share.T
    return kernel.reshape(len(weight), -1, *window)
