"""Which of the places that a survey saw are worth a map, and which of them is the last."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from camlucida.core.capture import Call, vjp
from camlucida.core.layouts import POOLS, Grid, Layout, has_space
from camlucida.core.structure import tensors
from camlucida.core.trunk import Graph


@dataclass(frozen=True)
class Place:
    """One layer's output as seen by the survey.

    ``share`` is the part of its grid that the score depends on; None where a survey that is not complete did not ask.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    layout: Layout
    grid: Grid
    share: float | None
    bare: bool
    order: int


@dataclass(frozen=True)
class Blocks:
    """The modules of a net by name, and which of them are one of a row of blocks: with a sibling of their own kind."""

    modules: Mapping[str, nn.Module]

    @cached_property
    def _names(self) -> frozenset[str]:
        rows: dict[str, list[str]] = {}
        for name in filter(None, self.modules):
            rows.setdefault(name.rpartition(".")[0], []).append(name)
        one = self.modules
        return frozenset(n for row in rows.values() for n in row if any(n != m and _alike(one[n], one[m]) for m in row))

    def around(self, name: str) -> str | None:
        """The nearest ancestor that is such a block."""
        parent = name.rpartition(".")[0]
        while parent and parent not in self._names:
            parent = parent.rpartition(".")[0]
        return parent or None

    def out(self, places: Sequence[Place]) -> Place | None:
        """The last place, or where it lies among the innards of a block, the block's last own child before it."""
        last = places[-1]
        block = self.around(last.name)
        if block is None:
            return last
        own = [p for p in places if p.name.rpartition(".")[0] == block]
        before = [p for p in places if not p.name.startswith(block + ".")]
        return own[-1] if own else (before[-1] if before else None)


def _alike(one: nn.Module, two: nn.Module) -> bool:
    """Of one class; mere containers must hold the same classes, too."""
    if type(one) is not type(two):
        return False
    plain = isinstance(one, nn.Sequential | nn.ModuleList)
    return not plain or {type(m) for m in one.children()} == {type(m) for m in two.children()}


_PASSING = (nn.Identity, nn.modules.dropout._DropoutNd, nn.Flatten, nn.Unflatten)
_TRIES = 4  # places behind the last neck that are tried
_LATE = 3  # necks
_SLACK = 1e-3  # of the largest gradient, for rounding

Pair = tuple[Place, Call]


class Trunk:
    """The places of one pass whose ``score`` still has its graph; ``weights`` are what it does not come from.

    ``places`` are those worth a map: space and gradient, not a mere pool or view, one name a tensor, no innards of a
    block, and no branch of what the score reads: up to the last neck of the graph it is the necks, and behind it only
    what carries all that the score takes from it, as in the block whose class token is read out. ``settled`` says that
    whatever came before the first of those seen would not have been chosen.
    """

    def __init__(self, score: Tensor, graph: Graph, seen: Sequence[Pair], blocks: Blocks, times: Counter[str]) -> None:
        self._score, self._graph, self._blocks = score, graph, blocks
        alive = _alive([pair for pair in seen if times[pair[0].name] == 1])
        self._calls = {p: c for p, c in _named_once(alive)}
        necks = [p for p, c in self._calls.items() if c.feature is not None and self._graph.neck(c.feature)]
        self._last = necks[-1] if necks else None
        self.whole = self._last is not None or not self._calls
        held = {p.order for p in necks}
        whole = [p for p in self._calls if not necks or p.order in held or p.order > necks[-1].order]
        chosen = self._chosen(whole)
        self.places = [p for p in chosen if p is chosen[-1] or blocks.around(p.name) is None]
        self.settled = self._last is not None and len(chosen) > 1

    def _chosen(self, places: list[Place]) -> list[Place]:
        tries = 0
        while places:
            better = self._blocks.out(places)
            if better is places[-1]:
                if self._whole(better, places):
                    break
                tries += 1
                better = self._last if tries == _TRIES else _before(places)
            places = places[: places.index(better) + 1] if better else []
        return places

    def _whole(self, place: Place, places: Sequence[Place]) -> bool:
        """Whether a place shows all the evidence, as one thing."""
        if self._last is None or place.order < self._last.order:
            return True
        feature, neck = self._calls[place].feature, self._calls[self._last].feature
        if feature is None or neck is None or len(places) < 2:
            return True
        if place is self._last:
            return not self._graph.parted(feature)
        return self._carries(feature, neck, self._last.layout)

    def _carries(self, feature: Tensor, neck: Tensor, layout: Layout) -> bool:
        """Whether what the score takes from the places of the last neck all comes by way of a later layer."""
        unit = torch.ones_like(self._score)[None]
        at, through = vjp(self._score, unit, [neck, feature], keep=True)
        pulled = None if through is None else vjp(feature, through, [neck], keep=True)[0]
        if at is None or pulled is None:
            return False
        at, pulled = layout(at[0]), layout(pulled[0])
        return bool((at - pulled).abs().amax() <= _SLACK * at.abs().amax())


def _alive(seen: Sequence[Pair]) -> Sequence[Pair]:
    """Those with space and gradient that are no mere view, nor a pool where there is anything else."""
    live = [(p, c) for p, c in seen if p.share and has_space(p.grid) and not _passing(c)]
    pooled = {id(c.feature) for _, c in seen if isinstance(c.module, POOLS)}
    return [(p, c) for p, c in live if id(c.feature) not in pooled] or live


def late(seen: Sequence[Pair], graph: Graph) -> Sequence[Pair]:
    """Those from the third last neck on, among which the choice mostly is; all where there are no three.

    What only hands on a tensor from before is not among them: it may have a better name there.
    """
    order = [c.feature for p, c in seen if has_space(p.grid) and not isinstance(c.module, POOLS) and not _passing(c)]
    necks = [f for f in {id(f): f for f in order}.values() if f is not None and graph.neck(f)]
    if len(necks) < _LATE:
        return seen
    first = next(i for i, (_, c) in enumerate(seen) if c.feature is necks[-_LATE])
    before = {id(c.feature) for _, c in seen[:first]}
    return [(p, c) for p, c in seen[first:] if id(c.feature) not in before]


def _named_once(pairs: Sequence[Pair]) -> list[Pair]:
    """One name for each tensor, in the order of running."""
    found: dict[int, Pair] = {}
    for place, call in pairs:
        rival = found.get(id(call.feature))
        if rival is None or _plain(place, call) >= _plain(*rival):
            found[id(call.feature)] = place, call
    return sorted(found.values(), key=lambda pair: pair[0].order)


def _plain(place: Place, call: Call) -> tuple[bool, bool, int]:
    """How plainly a module gives its tensor: as such, or at least nothing beside it; then the outermost."""
    alone = sum(v.is_floating_point() for v in tensors(call.made)) == 1
    return place.bare, alone, -place.name.count(".")


def _before(places: Sequence[Place]) -> Place | None:
    return places[-2] if len(places) > 1 else None


def _passing(call: Call) -> bool:
    """Whether the module only hands its input on, as it is or as a view."""
    if isinstance(call.module, _PASSING) or call.given is None or call.feature is None:
        return isinstance(call.module, _PASSING)
    same_memory = call.given.untyped_storage().data_ptr() == call.feature.untyped_storage().data_ptr()
    return same_memory and call.feature is not call.given
