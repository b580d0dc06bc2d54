"""Layers: the one that is asked for, by any of its names, and the one that is found when none is.

`survey` looks at a model once: every module's output in one forward pass, the layout it reads as and how much of its
space the score depends on. The choice is the last *place* on the trunk that still has space and a gradient.
"""

import fnmatch
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from camlucida.core.capture import Call, How, Inputs, Tape, run
from camlucida.core.choice import Blocks, Pair, Trunk, late
from camlucida.core.choice import Place as Place
from camlucida.core.layouts import Grid, Layout, has_space, infer
from camlucida.core.probe import remember
from camlucida.core.scope import black_box, named, one_walk, unwrap
from camlucida.core.strangers import constants, strangers
from camlucida.core.targets import logits, score
from camlucida.core.texts import reached
from camlucida.core.trunk import Graph
from camlucida.errors import LayerError, LayoutError, TargetError, did_you_mean
from camlucida.types import Act

Score = Callable[[object], Tensor]
Ask = str | int | nn.Module

# --------------------------------------------------------------------------------------------------- asked by name


def resolve(model: nn.Module, ask: Ask) -> str:
    """The dotted name of the layer asked for: a module, a name, a glob (the last that matches) or an old-style name.

    ``features_29`` and ``layer4_bottleneck2_conv3`` are old-style names. A number counts places (`places`), not layers.

    Raises: LayerError, with the nearest names, where there is none.

    >>> resolve(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), "1")
    '1'
    """
    modules = named(unwrap(model))
    if isinstance(ask, nn.Module):
        return _by_module(modules, ask)
    if ask == "input" or (ask in modules and ask != ""):
        return str(ask)
    name = str(ask)
    matches = [n for n in modules if n and fnmatch.fnmatchcase(n, name)] if set(name) & set("*?[") else []
    found = matches[-1:] or list(_old_style(unwrap(model), name))[:1]
    if not found:
        raise LayerError(f"this model has no layer {name!r}.{did_you_mean(name, [n for n in modules if n])}")
    return found[0]


def _by_module(modules: dict[str, nn.Module], ask: nn.Module) -> str:
    ask = unwrap(ask)
    for name, module in modules.items():
        if module is ask and name:
            return name
    kind = type(ask).__name__
    raise LayerError(f"the {kind} handed over as layer is not part of this model: pass one of model.named_modules().")


def _old_style(module: nn.Module, rest: str, path: str = "") -> Iterator[str]:
    """Names with ``_`` for ``.``, in which a numbered child may be called block2, bottleneck2 or basicblock2."""
    for child, inner in unwrap(module).named_children():
        full = f"{path}.{child}" if path else child
        for said in (child, *(f"{kind}{child}" for kind in ("bottleneck", "basicblock", "block") if child.isdigit())):
            if rest == said:
                yield full
            elif rest.startswith(said + "_"):
                yield from _old_style(inner, rest[len(said) + 1 :], full)


# ---------------------------------------------------------------------------------------------------- found by itself


@dataclass(frozen=True)
class Survey:
    """Every layer with space, in the order of running, the trunk's places among them, and the choice.

    ``texts`` are the layers that a text among the inputs takes part in: none of them is a grid of the picture. Neither
    are the ``strangers``, which look at another picture among the inputs. ``whole`` says whether all the evidence goes
    through the choice; where the model has no such layer, it is one branch of several. One that is not ``complete``
    has the choice and a few places before it, and the share of none but the last layers.
    """

    all: tuple[Place, ...]
    places: tuple[Place, ...]
    texts: frozenset[str] = frozenset()
    strangers: frozenset[str] = frozenset()
    whole: bool = True
    complete: bool = True

    def met_before(self, name: str) -> tuple[list[Grid], list[Grid]]:
        """The grids met before a layer ran, what its tokens may be cut from, and those of tokens."""
        end = next((p.order for p in self.all if p.name == name), len(self.all))
        met = [(p.layout.kind == "tokens", p.grid) for p in self.all if p.order < end and has_space(p.grid)]
        plain, cut = (list(dict.fromkeys(g for kind, g in met if kind is wanted)) for wanted in (False, True))
        return plain, cut

    def numbered(self, number: int) -> Place:
        """The place of this number, −1 the last. Raises: LayerError where there are fewer."""
        if not -len(self.places) <= number < len(self.places):
            have = ", ".join(p.name for p in self.places[-5:])
            raise LayerError(f"place {number} does not exist: this model has {len(self.places)} (the last: {have}).")
        return self.places[number]

    @property
    def choice(self) -> Place:
        """The last place. Raises: LayerError where the model has none."""
        if not self.places and self.all and not any(p.share for p in self.all):
            raise LayerError(
                "the score does not depend on the picture: its gradient is exactly zero at every layer, as in a newly "
                "built net whose last layer starts at zero. Load trained weights, or choose another target."
            )
        if not self.places:
            raise LayerError(
                "no layer of this model keeps both space and a gradient from its score: "
                "name one with layer=…, or pass a target that depends on where things are."
            )
        return self.places[-1]

    def of(self, name: str) -> Place | None:
        """What was seen of one layer."""
        return next((p for p in self.all if p.name == name), None)


_SHAPES = 16  # input shapes that are remembered for each model and target
Memory = weakref.WeakKeyDictionary[Score, dict[object, Survey]]
_SEEN: "weakref.WeakKeyDictionary[nn.Module, Memory]" = weakref.WeakKeyDictionary()


@one_walk()
def survey(
    model: nn.Module,
    inputs: Inputs,
    target: Score | None = None,
    again: bool = False,
    known_by: Score | None = None,
    complete: bool = True,
) -> Survey:
    """Look at every layer of the model once and remember it for this input shape.

    Costs one forward and one backward pass of a single picture of noise, which no picture's peculiarities bias (of the
    batch itself, for a ``target`` of one's own); not ``complete``, of the backward pass mostly the last layers' part.
    Where modules give what has no gradient, a second forward pass tells whether the picture has a part in it. Model and
    target (or what it was made from, ``known_by``) are remembered weakly, by object, while the model has the same
    modules; ``again`` looks anew.
    """
    net = unwrap(model)
    if hidden := black_box(net):
        raise LayerError(f"{hidden} hides its layers: there is none to look at.")
    seen = (tuple(inputs.x.shape[1:]), inputs.x.dtype, inputs.spoken)
    key: tuple[object, ...] = (*seen, inputs.output, tuple((n, id(m)) for n, m in named(net).items()))
    try:
        hash(key)
        known = _SEEN.setdefault(net, weakref.WeakKeyDictionary()).setdefault(known_by or target or logits, {})
    except TypeError:  # a target that cannot be remembered weakly is not remembered, nor is such a choice of output
        key, known = (), {}
    if not again and key in known and (known[key].complete or not complete):
        return known[key]
    found = _look(net, inputs, target, complete)
    if found.places:  # nothing found may be one picture's fault: the next one is looked at anew
        while len(known) >= _SHAPES:
            known.pop(next(iter(known)), None)
        known[key] = found
    return found


def _look(net: nn.Module, inputs: Inputs, target: Score | None, complete: bool) -> Survey:
    if target:
        return _pass(net, inputs, target, complete)
    picture, one = inputs.x, inputs.row(0)
    noise = torch.randn(picture[:1].shape, generator=torch.Generator().manual_seed(0)).to(picture)
    found = _pass(net, one.put(noise), None, complete)
    return found if found.places else _pass(net, one, None, complete)


def _pass(net: nn.Module, one: Inputs, target: Score | None, complete: bool) -> Survey:
    modules = named(net)
    others = strangers(net, one, [n for n in modules if n])
    with run(net, one, ["input"], spy=[n for n in modules if n], how=How(whole=True)) as tape:
        count = len(one.x)
        total = score(target, tape.output, count).sum() if target else _best(tape.output, count)
        texts = frozenset(c.name for c, text in zip(tape.calls, reached(tape.calls, one), strict=True) if text)
        blocks = Blocks(modules)
        still = constants(net, one, tape.calls)
        off = texts | others | {c.name for c in still}
        calls = [c for c in tape.calls if not off or (c.name not in off and blocks.around(c.name) not in texts)]
        seen = list(_places(calls, tuple(one.x.shape[2:]), count))
        graph = Graph(total, [*net.parameters(), *(c.leaf for c in still if c.leaf is not None)])
        few = seen if complete else late(seen, graph)
        lit, times = _lit(tape, total, few), Counter(c.name for c in tape.calls)
        trunk = Trunk(total, graph, lit, blocks, times)
        if len(few) < len(seen) and not trunk.settled:
            lit = _lit(tape, total, seen)
            trunk = Trunk(total, graph, lit, blocks, times)
        places = tuple(trunk.places)
        if places:  # the graph tells where the cells of the choice lie, too
            feature = next(c.feature for p, c in lit if p is places[-1] and c.feature is not None)
            remember(net, one, {places[-1].name: (places[-1].layout, feature)}, tape.acts["input"])
        asked = {p.order: p for p, _ in lit}
        every = tuple(asked.get(p.order, p) for p, _ in seen)
        return Survey(every, places, texts, others, trunk.whole, len(asked) == len(every))


def _best(output: object, count: int) -> Tensor:
    try:
        return logits(output, count).amax()
    except TargetError as problem:
        raise TargetError(f"the layer cannot be chosen without a score: {problem}") from None


def _places(calls: Sequence[Call], space: Grid, count: int) -> Iterator[Pair]:
    """Each call whose output has space, as a place; tokens get their grid from the ones met before them."""
    grids: list[Grid] = []
    cut: list[Grid] = []
    told: dict[tuple[int, ...], Layout] = {}
    for order, call in enumerate(calls):
        if call.feature is None or len(call.feature) != count:
            continue  # no features, or rows that are windows or heads rather than pictures
        shape = tuple(call.feature.shape)
        try:
            layout = infer(shape, space, call.module, grids, cut)
        except LayoutError:
            continue
        if layout.kind != "tokens":  # a module without an axis of its own reads as the one before of the same shape
            layout = told.setdefault(shape, layout)
        grid = layout.places(shape)
        met = cut if layout.kind == "tokens" else grids
        if has_space(grid) and grid not in met:
            met.append(grid)
        bare = call.feature is call.made
        yield Place(call.name, type(call.module).__name__, shape, layout, grid, None, bare, order), call


def _lit(tape: Tape, score: Tensor, seen: Sequence[Pair]) -> list[Pair]:
    """The same places, with the share that the score depends on."""
    grads = tape.flow(score, [c for _, c in seen])
    return [
        (replace(p, share=0.0 if grad is None else _share(p.layout(grad))), c)
        for (p, c), grad in zip(seen, grads, strict=True)
    ]


def _share(grad: Act) -> float:
    """The part of the places where any channel's gradient is not zero; one channel or a few mostly show it."""
    one = grad[:, 0]
    if int(one.count_nonzero()) == one.numel():
        return 1.0
    lit = grad[:, :: max(1, grad.shape[1] // 8)].abs().amax(1).flatten(1) != 0
    if not bool(lit.any()) and not any(map(bool, grad.aminmax())):
        return 0.0
    if not bool(lit.all()):
        lit[~lit] = (grad.flatten(2).transpose(1, 2)[~lit] != 0).any(1)
    return float(lit.float().mean())
