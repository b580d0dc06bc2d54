"""One map from those of several layers, or of several methods."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from camlucida import maps
from camlucida.combine.given import NOTHING, Asked, net_of, opened, state_of
from camlucida.core.capture import Inputs
from camlucida.core.explain import sweep
from camlucida.core.explanation import Explanation, Facts, Pictures
from camlucida.core.layers import survey
from camlucida.core.targets import top1
from camlucida.errors import InputError, MethodError, did_you_mean
from camlucida.types import Map

_SHALLOW = 4  # a grid so many times as fine as the coarsest, along an axis, is a shallow layer's


def _share(map: Map) -> Map:
    """Each picture's map over its largest magnitude; zero stays zero."""
    peak = map.flatten(1).abs().amax(1).reshape(-1, *(1,) * (map.dim() - 1))
    return torch.where(peak == 0, 0.0, map / peak)


def stretched(map: Map) -> Map:
    """Each picture's ``relu(M)`` from 0 at its smallest to 1 at its largest; zero where it is the same everywhere."""
    map = map.relu()
    low = map.flatten(1).amin(1).reshape(-1, *(1,) * (map.dim() - 1))
    return _share(map - low)


def _tanh(found: Sequence[Map], shallow: Sequence[bool]) -> Map:
    parts = [_share(m.relu()) for m in found]
    return torch.stack([(2 * m).tanh() if s else m for m, s in zip(parts, shallow, strict=True)]).amax(0)


@dataclass(frozen=True)
class _Fusion:
    title: str
    told: str
    of: Callable[[Sequence[Map], Sequence[bool]], Map]


FUSIONS: Mapping[str, _Fusion] = {
    "mean": _Fusion("Mean of", "each over its largest magnitude", lambda m, _: torch.stack([*map(_share, m)]).mean(0)),
    "max": _Fusion(
        "Maximum of", "each over its largest magnitude", lambda m, _: torch.stack([*map(_share, m)]).amax(0)
    ),
    "product": _Fusion(
        "Product of", "each rectified and stretched to [0, 1]", lambda m, _: torch.stack([*map(stretched, m)]).prod(0)
    ),
    "tanh": _Fusion("Tanh fusion of", "each rectified, over its maximum, shallow ones as tanh(2 M)", _tanh),
}


def fuse(explanations: Iterable[Explanation], how: str = "mean") -> Explanation:
    """One map from several of the same pictures and target, on the finest of their grids (linear interpolation).

    ``mean`` and ``max`` of maps divided by their largest magnitude keep their sign; ``product`` of ``relu(M)``
    stretched to [0, 1] is RefineCAM's; ``tanh`` is LayerCAM's: the maximum of ``relu(M)`` over its largest value, of
    which shallow layers (4 times as fine as the coarsest) count as ``tanh(2 M)``. [jiang2021]

    A blank map (no gradient, no evidence, constant) counts as zero. What is fused has no units any more.

    Raises: MethodError for another ``how``; InputError where the maps are of other pictures or of other answers.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Flatten(1))
    >>> one, two = sweep(net, torch.rand(1, 3, 10, 10), targets=[5], layers=["1", "3"])
    >>> fuse([one, two], "product").layer, fuse([one, two]).map.shape
    ('1 + 3', torch.Size([1, 8, 8]))
    """
    if how not in FUSIONS:
        raise MethodError(f"maps are not fused by {how!r}.{did_you_mean(how, FUSIONS, show=9)}")
    explanations = list(explanations)
    _check_alike(explanations)
    grid = [max(axis) for axis in zip(*(e.map.shape[1:] for e in explanations), strict=True)]
    coarse = [min(axis) for axis in zip(*(e.map.shape[1:] for e in explanations), strict=True)]
    shallow = [any(n >= _SHALLOW * c for n, c in zip(e.map.shape[1:], coarse, strict=True)) for e in explanations]
    laid = next((e.centres for e in explanations if list(e.map.shape[1:]) == grid), None)
    found = FUSIONS[how].of([_onto(e, grid, laid) for e in explanations], shallow)
    rows = zip(*(e.statuses for e in explanations), strict=True)
    states = tuple(state_of(found[i : i + 1], parts) for i, parts in enumerate(rows))
    facts = _fused(explanations, how, grid)
    return replace(explanations[0], map=found, statuses=states, facts=facts, centres=laid)


def _onto(e: Explanation, grid: Sequence[int], laid: maps.Centres | None) -> Map:
    """A map on another grid, whose cells lie at ``laid``; cells without centres are spread evenly."""
    if laid is None and e.centres is None:
        return maps.resize(told(e), grid)
    even, space = maps.Centres.even, e.pictures.space
    own = e.centres or even(space, e.map.shape[1:])
    return maps.resize(told(e), grid, own.on(laid or even(space, grid)))


def _check_alike(explanations: Sequence[Explanation]) -> None:
    if not explanations:
        raise InputError("there is nothing to fuse: the list of explanations is empty.")
    first, *rest = explanations
    for e in rest:
        if len(e) != len(first) or not _same_pictures(e.pictures, first.pictures):
            raise InputError("maps of different pictures cannot be fused.")
        if not _same_answer(e, first):
            raise InputError(
                f"maps of two answers cannot be fused: {first.facts.target} and {e.facts.target}. "
                "To see what tells one from the other, explain target=against(one, other)."
            )
        if e.map.dim() != first.map.dim():
            raise InputError("maps with different numbers of axes cannot be fused.")


def _same_pictures(one: Pictures, two: Pictures) -> bool:
    return one.space == two.space and one.names == two.names and _equal(one.tensor, two.tensor)


def _same_answer(one: Explanation, two: Explanation) -> bool:
    """Whether both explain the same; of a region, an embedding or a function of one's own only the scores tell."""
    if one.facts.target != two.facts.target or one.where != two.where or not _equal(one.classes, two.classes):
        return False
    named = one.classes is not None and not one.where
    return named or torch.allclose(one.scores, two.scores, rtol=1e-3, atol=1e-6, equal_nan=True)


def _equal(one: Tensor | None, two: Tensor | None) -> bool:
    if one is None or two is None:
        return one is two
    return torch.equal(one.nan_to_num(), two.nan_to_num())


def told(e: Explanation) -> Map:
    """The map with what shows nothing put to zero, so that dividing it by its maximum does not make it show."""
    blank = torch.tensor([s in (*NOTHING, "constant") for s in e.statuses], device=e.map.device)
    return torch.where(blank.reshape(-1, *(1,) * (e.map.dim() - 1)), 0.0, e.map)


def _fused(explanations: Sequence[Explanation], how: str, grid: Sequence[int]) -> Facts:
    facts = [e.facts for e in explanations]

    def several(of: str, join: str = " + ") -> str:
        return join.join(dict.fromkeys(getattr(f, of) for f in facts))

    size = "×".join(map(str, grid))
    told = f"{how} of {len(facts)} maps, {FUSIONS[how].told}, at {several('layer', ', ')}, on a grid of {size}"
    return replace(
        facts[0],
        method=f"{how}({several('method', '+')})",
        title=f"{FUSIONS[how].title} {several('title')}",
        layer=several("layer"),
        layout=several("layout"),
        cost=sum(dict.fromkeys(f.cost for f in facts)),  # maps of one sweep tell its whole cost each
        class_agnostic=all(f.class_agnostic for f in facts),
        notes=(*dict.fromkeys(n for f in facts for n in f.notes), told),
    )


def over_layers(
    model: nn.Module, x: Any, *, layers: Sequence[Any] | None = None, how: str = "mean", **asked: Unpack[Asked]
) -> Explanation:
    """One map from several layers (`fuse`), all read in one run; the other arguments are those of `explain`.

    Without ``layers``: the last place of each of the four coarsest grids; where there is one grid only, as in vision
    transformers, the last four places. RefineCAM is ``method="gradcampp", how="product"``; LayerCAM's own fusion is
    ``method="layercam", how="tanh"``.

    Raises: as `explain` and `fuse`.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Flatten(1))
    >>> e = over_layers(net, torch.rand(1, 3, 10, 10), layers=["1", "3"], how="product", target=5, method="gradcampp")
    >>> e.facts.title, e.facts.notes[-1]
    ('Product of Grad-CAM++', 'product of 2 maps, each rectified and stretched to [0, 1], at 1, 3, on a grid of 8×8')
    """
    if how not in FUSIONS:
        raise MethodError(f"maps are not fused by {how!r}.{did_you_mean(how, FUSIONS, show=9)}")
    target, method = asked.pop("target", top1), asked.pop("method", "gradcam")
    if layers is None:
        inputs, x = opened(model, x, asked.get("preprocess"))
        layers = _stages(model, replace(inputs, output=asked.get("output", inputs.output)))
    return fuse(sweep(model, x, targets=[target], methods=[method], layers=layers, **asked), how)  # type: ignore[misc]


def _stages(model: nn.Module, inputs: Inputs) -> list[str]:
    places = survey(net_of(model), inputs).places
    last = {p.grid: p.name for p in places}
    return list(last.values())[-4:] if len(last) > 1 else [p.name for p in places[-4:]]
