"""One map from those of several views of a picture: noisy, mirrored, of other sizes."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Generator, Tensor, nn

from camlucida import maps
from camlucida.combine.given import Asked, opened, settled, state_of
from camlucida.core.capture import Inputs
from camlucida.core.explain import explain
from camlucida.core.explanation import Explanation
from camlucida.errors import CamlucidaError, InputError
from camlucida.types import Map

_ROWS = 16  # views of one picture that are put to the model at a time


@dataclass(frozen=True)
class _View:
    """Other pictures ``n c *space`` in the place of one, and what brings their maps ``n *space`` back onto it."""

    xs: Tensor
    back: Callable[[Map], Map]


def smooth(
    model: nn.Module, x: Any, *, samples: int = 16, noise: float = 0.15, seed: int = 0, **asked: Unpack[Asked]
) -> Explanation:
    """SmoothGrad over any method: the mean of the maps of ``samples`` noisy copies of each picture. [smilkov2017]

    ``noise`` is the standard deviation of normal noise as a share of the picture's range ``max x − min x``. The same
    ``seed`` gives the same map, whatever the batch; no other random numbers are touched. Scores are those of the
    picture as it is. The other arguments are those of `explain`.

    Raises: as `explain`; InputError where there are no samples or the noise is negative.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    >>> e = smooth(net, torch.rand(2, 3, 16, 16), target=7, samples=4)
    >>> e.facts.title, tuple(e.map.shape)
    ('Grad-CAM, mean over 4 noisy pictures', (2, 14, 14))
    """
    if samples < 1 or not 0 <= noise < math.inf:
        raise InputError(f"smoothing takes at least 1 sample and noise of 0 or more; got {samples} and {noise}.")

    def views(x: Tensor) -> Iterator[_View]:
        random, spread = Generator().manual_seed(seed), noise * float(x.max() - x.min())
        for first in range(0, samples, _ROWS):
            shape = (min(_ROWS, samples - first), *x.shape)
            grain = torch.randn(shape, generator=random, dtype=torch.float64)
            yield _View(x + (grain * spread).to(x), lambda map: map)

    told = f"mean over {samples} noisy pictures"
    note = f"{told}: normal noise of {noise:g} of each picture's range, seed {seed}"
    return _over(model, x, asked, views, ("smooth", told, note))


def augmented(
    model: nn.Module, x: Any, *, flips: Sequence[int] = (-1,), scales: Sequence[float] = (1.0,), **asked: Unpack[Asked]
) -> Explanation:
    """Test-time augmentation: the mean of the maps of each picture, its mirror images and other sizes of them.

    ``flips`` are the axes to mirror along, one at a time, −1 the last (left and right); ``scales`` are sizes as shares
    of the picture's own, for models that take other sizes. Each map is brought back onto the picture before the mean;
    one of another size is scaled to the largest magnitude of the unmirrored map at its own size. The other arguments
    are those of `explain`.

    Raises: as `explain`; InputError for an axis that does not exist, a scale that is none, or a size that the model
    does not take.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    >>> augmented(net, torch.rand(2, 3, 16, 16), target=7, scales=(1.0, 1.5)).facts.title
    'Grad-CAM, mean over 4 views'
    """
    if not scales or not all(0 < s < math.inf for s in scales):
        raise InputError(f"scales are shares of the picture's size, above 0; got {tuple(scales)}.")

    def views(x: Tensor) -> Iterator[_View]:
        if wrong := [axis for axis in flips if not 1 - x.dim() <= axis < 0]:
            raise InputError(f"axis {wrong[0]} cannot be mirrored along: this input's are {1 - x.dim()} to -1.")
        for scale in scales:
            sized = x if scale == 1 else maps.resize(x, [max(1, round(n * scale)) for n in x.shape[1:]])
            sides = [sized, *(sized.flip(axis) for axis in flips)]
            yield _View(torch.stack(sides), _mirrored_back)

    def _mirrored_back(found: Map) -> Map:
        return torch.stack([found[0], *(m.flip(axis) for m, axis in zip(found[1:], flips, strict=True))])

    told = f"mean over {len(scales) * (1 + len(flips))} views"
    note = f"{told}: mirrored along axes {[*flips]}, at {', '.join(f'{s:g}' for s in scales)} of its size"
    made = _over(model, x, asked, views, ("augmented", told, note))
    return replace(made, centres=made.centres and _mirrored(made, made.centres, flips))


def _mirrored(e: Explanation, own: maps.Centres, flips: Sequence[int]) -> maps.Centres:
    """The mean of where the cells lie in a picture and, brought back, in each of its mirror images."""
    start = list(own.start)
    for axis in flips:
        last = own.start[axis] + (e.map.shape[axis] - 1) * own.stride[axis]
        start[axis] += (e.pictures.space[axis] - last - own.start[axis]) / (1 + len(flips))
    return maps.Centres(tuple(start), own.stride)


def _over(
    model: nn.Module, x: Any, asked: Asked, views: Callable[[Tensor], Iterator[_View]], told: tuple[str, str, str]
) -> Explanation:
    """The mean map over the views of each picture, of what is explained on the picture as it is."""
    inputs, x = opened(model, x, asked.get("preprocess"))
    clean = explain(model, x, **asked)
    found, states, cost = [], [], clean.cost
    for i in range(len(clean)):
        parts = [_read(model, clean[i], inputs.row(i), asked, view) for view in views(inputs.x[i])]
        found.append(torch.cat([e.map for e in parts]).mean(0, keepdim=True))
        states.append(state_of(found[-1], [s for e in parts for s in e.statuses]))
        cost += sum(e.cost * len(e) for e in parts) / len(clean)
    name, title, note = told
    facts = replace(
        clean.facts,
        method=f"{name}({clean.method})",
        title=f"{clean.facts.title}, {title}",
        cost=cost,
        notes=(*clean.facts.notes, note),
    )
    return replace(clean, map=torch.cat(found), statuses=tuple(states), facts=facts)


def _read(model: nn.Module, clean: Explanation, inputs: Inputs, asked: Asked, view: _View) -> Explanation:
    """The maps of one picture's views, on its own grid; in the size of its own map where their grid was another."""
    layer = asked.get("layer")
    wanted: Asked = {**asked, "target": settled(model, clean, asked), "preprocess": None}
    wanted["layer"] = layer if isinstance(layer, tuple) else clean.layer
    try:
        e = explain(model, inputs.showing(view.xs), **wanted)
    except CamlucidaError:
        raise
    except Exception as fault:
        if view.xs.shape[2:] == inputs.x.shape[2:]:
            raise
        size = "×".join(map(str, view.xs.shape[2:]))
        raise InputError(f"this model does not take inputs of {size}: leave scales= away ({fault}).") from fault
    back, grid = view.back(e.map), clean.map.shape[1:]
    if back.shape[1:] != grid:
        own, other = maps.scale_of(clean.map, signed=True), maps.scale_of(back[:1], signed=True)
        back = maps.resize(back, grid) * (own / other if other else 0.0)
    return replace(e, map=back)
