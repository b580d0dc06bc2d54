"""One map from crops of a picture at several sizes."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from camlucida import maps
from camlucida.combine.given import Asked, opened, settled, state_of
from camlucida.combine.layers import stretched, told
from camlucida.core.capture import Inputs
from camlucida.core.explain import explain
from camlucida.core.explanation import Explanation
from camlucida.errors import InputError, MethodError
from camlucida.maps import Centres
from camlucida.types import Map

_ROWS = 16  # crops that are put to the model at a time
_ROUNDING = 1e-9  # of positions, in cells
_LEAST = 1e-6  # of a map stretched to [0, 1]: so little is rounding, and says nothing


def sess(
    model: nn.Module,
    x: Any,
    *,
    scales: int = 12,
    growth: float = 2 / 7,
    keep: float = 1.0,
    how: str = "mean",
    **asked: Unpack[Asked],
) -> Explanation:
    """SESS (scaling and sliding) over any method: the maps of crops of each picture at many sizes, fused. [tursun2022]

    Size ``i`` of ``scales`` is ``1 + i·growth`` times the picture's own, cut into windows of the picture's own size,
    side by side, the last one moved to the edge. Crop ``j`` has the map ``L_j = p_j / max p · M_j``: ``M_j`` is its
    ``relu(M)`` stretched to [0, 1], ``p_j`` the probability there of the class that is explained (of what is no class
    its score, where above zero); only the share ``keep`` of the crops with the largest is looked at. Laid back onto the
    picture, they are fused by ``how``: ``mean`` is ``Σ_j L_j(q) / #{j: L_j(q) > 0}`` at each place ``q``, ``max`` the
    largest of them.

    The map has the cells of the largest size's crops; it has no units. Scores are those of the picture as it is. The
    other arguments are those of `explain`.

    Raises: as `explain`; InputError for sizes or a share that make no sense; MethodError for another ``how``.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> e = sess(net, torch.rand(1, 3, 8, 8), target=1, scales=3, growth=0.5)
    >>> e.facts.title, tuple(e.map.shape)
    ('Grad-CAM, SESS over 9 crops', (1, 16, 16))
    """
    if scales < 1 or not 0 < growth < math.inf or not 0 < keep <= 1:
        raise InputError(
            "SESS takes at least 1 size, growth above 0 and a share of crops to keep above 0, up to 1; "
            f"got {scales}, {growth:g} and {keep:g}."
        )
    if how not in _FUSED:
        raise MethodError(f"crops are fused by {' or '.join(map(repr, _FUSED))}; got {how!r}.")
    inputs, x = opened(model, x, asked.get("preprocess"))
    clean = explain(model, x, **asked)
    crops = list(_crops(inputs.x.shape[2:], [1 + i * growth for i in range(scales)]))
    found = [_fused(_Asking(model, inputs.row(i), clean[i], asked), crops, keep, how) for i in range(len(clean))]
    count, largest = len(found[0].statuses), 1 + (scales - 1) * growth
    note = (
        f"{how} over {count} of {len(crops)} crops at {scales} sizes, up to {largest:.3g} times the picture's own: "
        "each rectified, stretched to [0, 1], times its probability over the largest"
    )
    facts = replace(
        clean.facts,
        method=f"sess({clean.method})",
        title=f"{clean.facts.title}, SESS over {count} crops",
        cost=clean.cost + sum(f.cost for f in found) / len(found),
        notes=(*clean.facts.notes, note),
    )
    states = tuple(state_of(f.map, f.statuses) for f in found)
    return replace(clean, map=torch.cat([f.map for f in found]), statuses=states, facts=facts, centres=None)


@dataclass(frozen=True)
class _Crop:
    """A window of the picture's ``own`` size, at a corner of it at another ``size``."""

    own: tuple[int, ...]
    size: tuple[int, ...]
    corner: tuple[int, ...]


def _crops(own: Sequence[int], scales: Sequence[float]) -> Iterator[_Crop]:
    for scale in scales:
        size = tuple(round(n * scale) for n in own)
        starts = [[*range(0, s - n, n), s - n] for s, n in zip(size, own, strict=True)]
        yield from (_Crop(tuple(own), size, corner) for corner in itertools.product(*starts))


@dataclass(frozen=True)
class _Asking:
    """What is asked of the crops of one picture, as it was settled on the picture as it is."""

    model: nn.Module
    inputs: Inputs
    clean: Explanation
    asked: Asked

    def of(self, crops: Sequence[_Crop], **other: Any) -> list[Explanation]:
        """The explanations of crops, some at a time."""
        layer = self.asked.get("layer")
        wanted: Asked = {**self.asked, "target": settled(self.model, self.clean, self.asked), "preprocess": None}
        wanted["layer"] = layer if isinstance(layer, tuple) else self.clean.layer
        wanted |= other  # type: ignore[typeddict-item]
        parts = [crops[i : i + _ROWS] for i in range(0, len(crops), _ROWS)]
        return [explain(self.model, self.inputs.showing(_cut(self.inputs.x[0], part)), **wanted) for part in parts]


def _cut(x: Tensor, crops: Sequence[_Crop]) -> Float[Tensor, "n c *space"]:
    large = {size: maps.resize(x, size) for size in {c.size for c in crops}}
    at = [(slice(None), *(slice(a, a + n) for a, n in zip(c.corner, c.own, strict=True))) for c in crops]
    return torch.stack([large[c.size][where] for c, where in zip(crops, at, strict=True)])


@dataclass(frozen=True)
class _Fused:
    """One picture's map, the statuses of its parts, and what they cost."""

    map: Map
    statuses: list[maps.Status]
    cost: float


def _fused(one: _Asking, crops: Sequence[_Crop], keep: float, how: str) -> _Fused:
    looked = one.of(crops, method="uniform") if keep < 1 else []  # what is left out by its score needs no map
    kept = _best(_sure(looked), crops, keep) if looked else crops
    found = one.of(kept)
    fine = _fine(found[0].map.shape[1:], crops[-1])
    laid = _laid(torch.cat([stretched(told(e)) for e in found]), found[0].centres, kept, fine)
    map = _FUSED[how](w * part for w, part in zip(_shares(_sure(found)), laid, strict=True))
    return _Fused(map[None], [s for e in found for s in e.statuses], sum(e.cost * len(e) for e in (*looked, *found)))


def _sure(found: Sequence[Explanation]) -> list[float]:
    """The probability of what is explained in each crop; of what is no class its score, where above zero."""
    rows = [(e.probability(i), float(e.scores[i])) for e in found for i in range(len(e))]
    return [max(score, 0.0) if p is None else p for p, score in rows]


def _shares(sure: Sequence[float]) -> list[float]:
    """Each over the largest; where none is above zero they all count alike."""
    most = max(sure)
    return [p / most for p in sure] if most > 0 else [1.0] * len(sure)


def _best(sure: Sequence[float], crops: Sequence[_Crop], keep: float) -> list[_Crop]:
    """The share of the crops that are surest, in their own order."""
    order = torch.tensor(sure).argsort(descending=True, stable=True)[: math.ceil(round(keep * len(crops), 9))]
    return [crops[i] for i in sorted(order.tolist())]


# ---------------------------------------------------------------------------------------------------------- the picture


def _fine(grid: Sequence[int], last: _Crop) -> list[int]:
    """The grid whose cells are as large as those of the crops of the largest size."""
    return [round(g * s / n) for g, s, n in zip(grid, last.size, last.own, strict=True)]


def _laid(found: Map, centres: Centres | None, crops: Sequence[_Crop], fine: Sequence[int]) -> Iterator[Map]:
    """Each crop's map on the grid of the whole picture, zero at the centres of cells that the crop does not reach."""
    own = centres or Centres.even(crops[0].own, found.shape[1:])
    for map, crop in zip(found, crops, strict=True):
        cells = [f / s for f, s in zip(fine, crop.size, strict=True)]  # of the whole grid in a pixel of this size
        start = tuple((a + at) * c for a, at, c in zip(crop.corner, own.start, cells, strict=True))
        stride = tuple(step * c for step, c in zip(own.stride, cells, strict=True))
        laid = maps.resize(map[None], fine, Centres(start, stride))[0]
        for axis, (a, n, c) in enumerate(zip(crop.corner, crop.own, cells, strict=True)):
            at = torch.arange(fine[axis], device=map.device) + 0.5
            inside = (at >= a * c - _ROUNDING) & (at <= (a + n) * c + _ROUNDING)
            laid = laid * inside.reshape(-1, *(1,) * (laid.dim() - 1 - axis))
        yield laid


def _mean(parts: Iterator[Map]) -> Map:
    """At each place over the parts that say something there; NaN says something."""
    total = count = torch.zeros(())
    for part in parts:
        says = ~(part <= _LEAST)
        total, count = total + torch.where(says, part, 0), count + says
    return total / count.clamp(min=1)


def _max(parts: Iterator[Map]) -> Map:
    return reduce(torch.maximum, parts)


_FUSED: Mapping[str, Callable[[Iterator[Map]], Map]] = {"mean": _mean, "max": _max}
