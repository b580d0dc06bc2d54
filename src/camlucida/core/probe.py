"""Where a layer's grid lies in the picture: read off the graph, and proved by replacing patches of the input.

`centred` tells it for maps, once for a model, layer and shape of input, and remembers it weakly as `survey` does.
`probe` is the proof: it asks the model again, and sees whether what changes on the grid is where the patch was.
"""

import itertools
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from camlucida.core.capture import How, Inputs, full, run
from camlucida.core.layouts import Layout as Known
from camlucida.core.scope import named, unwrap
from camlucida.core.trace import centres
from camlucida.maps import Centres
from camlucida.types import Act, Layout

# -------------------------------------------------------------------------------------------------------- for every map

_SEEN = 0.25  # of a cell
_SHAPES = 16  # input shapes that are remembered for each model
_Told = dict[tuple[str, Layout], Centres | None]
_KNOWN: "weakref.WeakKeyDictionary[nn.Module, dict[object, _Told]]" = weakref.WeakKeyDictionary()


def centred(net: nn.Module, inputs: Inputs, layouts: Mapping[str, Layout]) -> dict[str, Centres | None]:
    """The centres of the cells of each layer's grid, in pixels of the input; None: spread evenly, or not to be told.

    What is not known yet costs one forward pass of one picture in all. Layouts of the user's own are not looked at.
    """
    asked = {n: u for n, u in layouts.items() if n != "input" and isinstance(u, Known)}
    known = _known(net, inputs)
    if new := {n: u for n, u in asked.items() if (n, u) not in known}:
        known |= _look(net, inputs.row(0), new)
    return {n: known[n, asked[n]] if n in asked else None for n in layouts}


def remember(net: nn.Module, inputs: Inputs, layers: Mapping[str, tuple[Layout, Tensor]], leaf: Tensor) -> None:
    """Note the centres of layers, from tensors that they gave with a graph back to the input ``leaf``."""
    _known(net, inputs).update({(n, layout): _told(layout, raw, leaf) for n, (layout, raw) in layers.items()})


def _known(net: nn.Module, inputs: Inputs) -> _Told:
    net = unwrap(net)
    key = (tuple(inputs.x.shape[1:]), inputs.x.dtype, tuple((n, id(m)) for n, m in named(net).items()))
    shapes = _KNOWN.setdefault(net, {})
    while key not in shapes and len(shapes) >= _SHAPES:
        shapes.pop(next(iter(shapes)), None)
    return shapes.setdefault(key, {})


def _look(net: nn.Module, one: Inputs, layouts: Mapping[str, Layout]) -> _Told:
    try:
        with run(net, one, ["input", *layouts], how=How(whole=True)) as tape:
            return {(n, u): _told(u, tape.acts[n], tape.acts["input"]) for n, u in layouts.items()}
    except Exception:  # whatever a model does in a pass of its own must not take the map away
        return dict.fromkeys(layouts.items())


def _told(layout: Layout, raw: Tensor, leaf: Tensor) -> Centres | None:
    """What the graph tells, where that is another thing than an even spread."""
    try:
        with torch.enable_grad():
            act = layout(raw)
        found = centres(act, leaf)
    except Exception:  # a kind of graph that is not known here
        return None
    return None if found is None or _hardly(found, leaf.shape[2:], act.shape[2:]) else found


def _hardly(found: Centres, size: Sequence[int], grid: Sequence[int]) -> bool:
    """Whether no cell lies further from where an even spread puts it than would be seen: a quarter of a cell."""
    even = Centres.even(size, grid)
    axes = zip(found.start, found.stride, even.start, even.stride, grid, strict=True)
    return all(max(abs(a - b), abs(a - b + (n - 1) * (s - t))) <= _SEEN * t for a, s, b, t, n in axes)


# -------------------------------------------------------------------------------------------------------------- a proof

_LOUD = 4  # spreads of the picture that the noise of a patch has
_DRAWS = (1, 4)  # of noise for each patch; four where one shows no right place: what mixes places scatters each anew
# Where the patches lie, as shares of each axis: all over it, around its middle, no two axes in the same order.
_SPOTS = ((0.2, 0.35, 0.5, 0.65, 0.8), (0.5, 0.8, 0.35, 0.2, 0.65), (0.65, 0.2, 0.8, 0.5, 0.35))
_PATCH = 1 / 8  # least side of a patch, in sides of the input
_SCATTERED = 0.75  # of an even spread
_CONTRAST = 0.1  # least share of the largest change by which it must pass what changes everywhere


@dataclass(frozen=True)
class Reach:
    """Where a layer's grid lies in the input: cell ``i`` of an axis has its centre at ``start + i·stride`` pixels.

    Pixel ``k`` is the stretch from ``k`` to ``k + 1``, its centre at ``k + ½``. ``right`` tells whether what changes
    with a patch of the input lies at that patch's place on the grid.
    """

    right: bool
    start: tuple[float, ...]
    stride: tuple[float, ...]


def probe(net: nn.Module, inputs: Inputs, name: str, layout: Layout, act: Act) -> Reach | None:
    """Put five patches of noise into an empty picture, one at a time, and see where the layer's grid changes.

    In an empty picture a gate that multiplies all places has nothing to multiply, and what attention adds to all of
    them alike is taken off: what is left is where the patch is. Where that is no right place, patches of the first
    picture itself are replaced. ``act`` is what the layer gave for ``inputs``, under ``layout``. Costs 6 forwards of
    one picture where the first try shows it, at most 54, and one to look at the graph. None where nothing changes, or
    all the grid nearly alike, or what changes is not finite: a net that mixes all places says nothing of its grid.
    """
    one = inputs.row(0)
    size, grid = tuple(one.x.shape[2:]), tuple(act.shape[2:])
    if len(size) != len(grid) or len(size) > len(_SPOTS):
        return None
    told = _look(net, one, {name: layout})[name, layout] or Centres.even(size, grid)
    patches = list(_patches(size, told.stride))
    middles = torch.tensor([[(a + b) / 2 for a, b in zip(low, high, strict=True)] for low, high in patches])
    at = (middles - torch.tensor(told.start)) / torch.tensor(told.stride)
    wrong = False
    for base, draws in itertools.product((torch.zeros_like(one.x), one.x), _DRAWS):
        shown = [[_patched(one.x, base, *corners, seed) for seed in range(draws)] for corners in patches]
        whole, apart, clear = _changed(net, one, base, shown, (name, layout))
        if _agree(whole, at, grid) or _agree(apart, at, grid):
            return Reach(True, told.start, told.stride)
        wrong |= clear and draws == _DRAWS[-1]
    return Reach(False, told.start, told.stride) if wrong else None


def _changed(
    net: nn.Module, one: Inputs, base: Tensor, shown: Sequence[Sequence[Tensor]], at: tuple[str, Layout]
) -> tuple[Float[Tensor, "k axes"], Float[Tensor, "k axes"], bool]:
    """Where the grid changes with each patch that ``base`` is ``shown`` with, in cells: by the whole change, and by
    what is left of it without that which most places share; and whether the whole is always clearly at one place."""
    before, whole, parts, clear = _read(net, one.showing(base), *at), [], [], True
    for pictures in shown:
        changes = torch.stack([(_read(net, one.showing(x), *at) - before)[0].flatten(1) for x in pictures])
        apart = changes - changes.median(2, keepdim=True).values
        size, rest = (c.flatten(0, 1).norm(dim=0).reshape(before.shape[2:]) for c in (changes, apart))
        whole.append(_where(size))
        parts.append(_where(rest))
        clear &= _told_apart(size)
    return torch.stack(whole), torch.stack(parts), clear


def _read(net: nn.Module, inputs: Inputs, name: str, layout: Layout) -> Act:
    with run(unwrap(net), inputs, [name], how=How(graph=False)) as tape:
        return full(layout(tape.acts[name].detach()))


def _patches(size: tuple[int, ...], stride: tuple[float, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """The corners of each patch, at least a cell wide."""
    sides = [min(s, max(1, math.ceil(step), math.ceil(s * _PATCH))) for s, step in zip(size, stride, strict=True)]
    for at in zip(*_SPOTS[: len(size)], strict=True):
        low = [min(max(0, round(f * s - w / 2)), s - w) for f, s, w in zip(at, size, sides, strict=True)]
        yield low, [a + w for a, w in zip(low, sides, strict=True)]


def _patched(x: Tensor, base: Tensor, low: list[int], high: list[int], seed: int) -> Tensor:
    """A picture with noise in a box, of the mean of ``x`` and some times its spread."""
    spread = _LOUD * (float(full(x).std()) or 1.0)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x) * spread + full(x).mean().to(x)
    inside = (slice(None), slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))
    made = base.detach().clone()
    made[inside] = noise[inside]
    return made


def _told_apart(changed: Float[Tensor, "*grid"]) -> bool:
    """Whether one place changed clearly more than most did, and what changed so is not scattered over all places."""
    if not bool(changed.isfinite().all()):
        return False
    over = (changed - changed.median()).clamp(min=0)
    return float(over.max()) > _CONTRAST * float(changed.max()) and min(_spreads(over)) < _SCATTERED


def _spreads(over: Float[Tensor, "*grid"]) -> list[float]:
    """How far values lie from their middle along each axis, in shares of how far an even spread does."""
    found = []
    for axis, n in enumerate(over.shape):
        line, at = over.movedim(axis, 0).reshape(n, -1).sum(1), torch.arange(n).to(over)
        middle = (line * at).sum() / line.sum()
        even = (n**2 - 1) / 12 or 1.0
        found.append(float(((line * (at - middle) ** 2).sum() / line.sum() / even).sqrt()))
    return found


def _where(changed: Float[Tensor, "*grid"]) -> Float[Tensor, " axes"]:
    """The middle, in cells, of what changed by more than half of the most, over what changes everywhere."""
    over = (changed - changed.median()).clamp(min=0)
    over = torch.where(over >= over.max() / 2, over, 0.0)
    axes = range(changed.dim())
    lines = [over.sum([b for b in axes if b != a]) if changed.dim() > 1 else over for a in axes]
    return torch.stack([(line * torch.arange(len(line)).to(line)).sum() / line.sum() for line in lines]).cpu()


def _agree(found: Float[Tensor, "k axes"], at: Float[Tensor, "k axes"], grid: tuple[int, ...]) -> bool:
    """Whether all patches were found near their places, and on the whole neither up nor down of them."""
    off = found - at.clamp(min=0).minimum(torch.tensor(grid) - 1.0)
    near = torch.tensor([1 + 0.1 * n for n in grid])
    return bool((off.abs() <= near).all()) and bool((off.mean(0).abs() <= 0.75).all())
