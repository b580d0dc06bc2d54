"""One map of a large picture, from overlapping tiles of it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from camlucida.combine.cuts import Corner, Large, larges
from camlucida.combine.given import Asked, net_of, state_of, target_of
from camlucida.core.capture import How, run
from camlucida.core.chunks import in_chunks, rows_that_fit
from camlucida.core.explain import explain
from camlucida.core.explanation import Explanation
from camlucida.core.settle import Task
from camlucida.core.targets import ClassTarget, logits
from camlucida.errors import CamlucidaError, InputError, TargetError
from camlucida.maps import Centres
from camlucida.types import Map, Target

_ROW = 64  # memory that a tile needs on its way through the model, in its own


def tiled(
    model: nn.Module, x: Any, *, tile: int | Sequence[int] | None = None, overlap: float = 0.5, **asked: Unpack[Asked]
) -> Explanation:
    """One map of a picture larger than the model takes, from overlapping tiles at full resolution.

    ``M(p) = Σ_t w_t(p) M_t(p)``, with windows that add up to one everywhere: the outer quarter of an overlap counts for
    nothing, and across its middle half one tile passes linearly into the next. The raw maps are blended, so that all
    tiles have one scale, in units of a tile's score. Where a layer sees no further than a quarter of the overlap, the
    map is that of the whole picture at once, without a seam.

    ``x`` is a picture (path, PIL picture, array), which is not resized, or a tensor ``b c *space``; ``tile`` is a side
    or one for each axis, by default the size that the model's pictures have, and ``overlap`` a share of it. What is
    explained is settled first: of a picture, what the model says of it as a whole; of a tensor, its mean logits over
    the tiles. The other arguments are those of `explain`.

    Raises: as `explain`; InputError for a tile or an overlap that makes no sense; TargetError for a target that looks
    for regions or boxes.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> e = tiled(net, torch.rand(1, 3, 40, 64), tile=16, target=1)
    >>> e.facts.title, tuple(e.map.shape)
    ('Grad-CAM, 28 tiles', (1, 40, 64))
    """
    if not 0 <= overlap < 1:
        raise InputError(f"overlap is the share of a tile that the next one shows again, from 0 to below 1: {overlap}.")
    if isinstance(target_of(model, asked), Task):
        raise TargetError("a target that looks for regions or boxes finds others in every tile: name a class instead.")
    found = [_explained(model, one, overlap, asked) for one in larges(model, x, tile, asked)]
    return _joined(found)


def _explained(model: nn.Module, large: Large, overlap: float, asked: Asked) -> Explanation:
    """The explanation of one picture: its first tile says where a tile's cells lie, then all of them are laid down."""
    corner = (0,) * len(large.size)
    wanted: Asked = {**asked, "target": large.target, "preprocess": None}
    first = _of_tiles(model, large, [corner], wanted)
    layer = asked.get("layer")
    wanted["layer"] = layer if isinstance(layer, tuple) else first.layer
    axes = _axes(large, first, overlap)
    corners = list(itertools.product(*(axis.starts for axis in axes)))
    if large.whole is None:
        wanted["target"] = _decided(model, large, corners)
    numbers = list(itertools.product(*(range(len(axis.starts)) for axis in axes)))
    whole = first.map.new_zeros([axis.cells for axis in axes])

    def lay(rows: Tensor) -> _Part:
        e = _of_tiles(model, large, [corners[r] for r in rows], wanted)
        for r, map in zip(rows.tolist(), e.map, strict=True):
            _add(whole, map, [axis.shares[k] for axis, k in zip(axes, numbers[r], strict=True)])
        return _Part(e.scores, e.logits, e.classes, e.statuses, e.cost)

    parts = in_chunks(len(corners), rows_that_fit(large.cut(corner), _ROW), lay)
    return _told(large, first, whole[None], parts, f"{overlap:.0%}")


def _of_tiles(model: nn.Module, large: Large, corners: Sequence[Corner], wanted: Asked) -> Explanation:
    try:
        return explain(model, large.shown(corners), **wanted)
    except (CamlucidaError, torch.OutOfMemoryError):
        raise
    except Exception as fault:
        size = "×".join(map(str, large.tile))
        raise InputError(f"this model does not take tiles of {size}: say tile= of its own size ({fault}).") from fault


def _decided(model: nn.Module, large: Large, corners: Sequence[Corner]) -> Target:
    """The target with the class and the rivals that it has by the mean of the tiles' logits."""
    target = large.target
    if not isinstance(target, ClassTarget):
        return target
    if len(set(target.indices)) == 1 and ":" not in target.score and target.score != "side":
        return target  # the same for every tile as it stands

    def read(rows: Tensor) -> Tensor:
        with run(net_of(model), large.shown([corners[r] for r in rows]), (), how=How(graph=False)) as tape:
            return logits(tape.output, len(rows)).detach().sum(0, keepdim=True)

    y = torch.stack(in_chunks(len(corners), rows_that_fit(large.cut(corners[0]), _ROW), read)).sum(0) / len(corners)
    return target.fixed(int(target.pick(y)), y)


# ------------------------------------------------------------------------------------------------------------ geometry


@dataclass(frozen=True)
class _Axis:
    """One axis: where its tiles begin, how many cells the whole map has, and, for each tile, the cells that it reaches
    and what share each of its own has in them, ``n g``."""

    starts: tuple[int, ...]
    cells: int
    shares: tuple[tuple[slice, Tensor], ...]


def _axes(large: Large, first: Explanation, overlap: float) -> list[_Axis]:
    grid = first.map.shape[1:]
    own = first.centres or Centres.even(large.tile, grid)
    cells = [g + round((s - t) / d) for s, t, g, d in zip(large.size, large.tile, grid, own.stride, strict=True)]
    whole = first.centres or Centres.even(large.size, cells)
    found = []
    for k, count in enumerate(cells):
        places = whole.start[k] + torch.arange(count, dtype=torch.float64) * whole.stride[k]
        sides = (large.size[k], large.tile[k], grid[k])
        found.append(_axis(sides, (own.start[k], own.stride[k]), places, overlap, first.map))
    return found


def _axis(
    sides: tuple[int, int, int], at: tuple[float, float], places: Float[Tensor, " n"], overlap: float, like: Tensor
) -> _Axis:
    """One axis of a picture of ``size``, in tiles of ``tile`` pixels with ``g`` cells at ``start + i·cell`` each; the
    cells of the whole map lie at ``places``."""
    (size, tile, g), (start, cell) = sides, at
    starts = _starts(size, tile, cell, overlap)
    inside = places - torch.tensor(starts)[:, None]
    windows = _windows(inside, [a + tile - b for a, b in itertools.pairwise(starts)], tile)
    shares = []
    for window, where in zip(windows, inside, strict=True):
        reached = window.nonzero()[:, 0].tolist() or [0, -1]
        few = slice(reached[0], reached[-1] + 1)
        index = ((where[few] - start) / cell).clamp(0, g - 1)
        hats = (1 - (index[:, None] - torch.arange(g)).abs()).clamp(min=0)
        shares.append((few, (window[few, None] * hats).to(like)))
    return _Axis(tuple(starts), len(places), tuple(shares))


def _starts(size: int, tile: int, cell: float, overlap: float) -> list[int]:
    """Where tiles begin: whole cells apart where cells are whole pixels, so that their grids fall together."""
    step = tile * (1 - overlap)
    apart = cell * int(step / cell + 1e-9)
    step = apart if apart >= 1 and abs(apart - round(apart)) < 1e-9 else step
    return [*range(0, size - tile, max(1, round(step))), size - tile]


def _windows(inside: Float[Tensor, "k n"], overlaps: Sequence[int], tile: int) -> Float[Tensor, "k n"]:
    """What each of ``k`` tiles counts at places that lie ``inside`` it: one in all, and one at the picture's ends."""
    rising, falling = torch.ones_like(inside), torch.ones_like(inside)
    for k, over in enumerate(overlaps):
        rising[k + 1], falling[k] = _ramp(inside[k + 1], over), _ramp(tile - inside[k], over)
    windows = rising * falling
    return windows / windows.sum(0)


def _ramp(depth: Tensor, over: int) -> Tensor:
    """From zero, a quarter of the overlap from a tile's border, to one at three quarters of it."""
    return ((depth - over / 4) / (over / 2)).clamp(0, 1) if over else (depth >= 0).to(depth)


def _add(whole: Float[Tensor, "*cells"], map: Float[Tensor, "*grid"], shares: Sequence[tuple[slice, Tensor]]) -> None:
    """Lay one tile's map onto the whole."""
    for axis, (_, share) in enumerate(shares):
        map = torch.tensordot(map, share, ([axis], [1])).movedim(-1, axis)
    whole[tuple(few for few, _ in shares)] += map


# ---------------------------------------------------------------------------------------------------------- the result


@dataclass(frozen=True)
class _Part:
    """What is kept of some tiles once their maps are laid down."""

    scores: Float[Tensor, " m"]
    logits: Float[Tensor, "m k"] | None
    classes: Tensor | None
    statuses: tuple[Any, ...]
    cost: float


def _mean(parts: Sequence[Tensor | None]) -> Any:
    some = [p for p in parts if p is not None]
    return torch.cat(some).mean(0, keepdim=True) if some else None


def _told(large: Large, first: Explanation, map: Map, parts: Sequence[_Part], overlap: str) -> Explanation:
    """The explanation of the whole: of its own scores where it was seen whole, else of the means over the tiles."""
    count, of = sum(len(p.scores) for p in parts), large.whole or first
    size = "×".join(str(t) for t in large.tile)
    known = "" if large.whole else "; scores are means over the tiles"
    note = (
        f"{count} tiles of {size}, {overlap} overlapping, blended without normalising: units of a tile's score{known}"
    )
    facts = replace(
        of.facts,
        method=f"tiled({first.method})",
        title=f"{first.facts.title}, {count} tiles",
        layer=first.layer,
        layout=first.facts.layout,
        cost=sum(p.cost * len(p.scores) for p in parts),
        notes=(*of.facts.notes, note),
    )
    state = state_of(map, [s for p in parts for s in p.statuses])
    made = replace(of, map=map, statuses=(state,), facts=facts, pictures=large.pictures, centres=first.centres)
    if large.whole:
        return made
    scores, y = _mean([p.scores for p in parts]), _mean([p.logits for p in parts])
    classes = None if parts[0].classes is None else parts[0].classes[:1]
    sure = None
    if first.sure is not None and classes is not None:  # one logit, and the side of it that is asked about
        sure = torch.where(classes > 0, y[:, 0], -y[:, 0]).sigmoid()
    return replace(made, scores=scores, logits=y, classes=classes, sure=sure)


def _joined(found: Sequence[Explanation]) -> Explanation:
    """The explanations of several pictures of one size as one. Raises: InputError where sizes differ."""
    if len(found) == 1:
        return found[0]
    if len({(e.map.shape, e.pictures.space) for e in found}) > 1:
        raise InputError("large pictures of different sizes have no one grid: tile each by itself.")

    def every(of: str, holder: Any = None) -> Any:
        parts = [getattr(holder(e) if holder else e, of) for e in found]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        return None if parts[0] is None else tuple(one for part in parts for one in part)

    held = {of: every(of, lambda e: e.pictures) for of in ("names", "frames", "images", "tensor", "notes", "originals")}
    own = {of: every(of) for of in ("map", "scores", "statuses", "classes", "logits", "sure", "where")}
    facts = replace(found[0].facts, cost=sum(e.cost for e in found) / len(found))
    return replace(found[0], facts=facts, pictures=replace(found[0].pictures, **held), **own)
