"""`explain` and `sweep`: the composition of everything beneath, and nothing else.

One forward pass, a layout for each layer, the gradients of each target (a closed form where the head has one), the
methods, and `Explanation`s that remember all of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from camlucida import maps
from camlucida.core import layers as layers_
from camlucida.core import targets as targets_
from camlucida.core.capture import Inputs, Tape, clock, read
from camlucida.core.evidence import Answers, Evidence, put
from camlucida.core.explanation import Explanation, Facts, Pictures
from camlucida.core.layouts import has_space, infer, plain
from camlucida.core.prepare import prepare
from camlucida.core.scope import named, unwrap
from camlucida.errors import InputError, LayerError, LayoutError, TargetError
from camlucida.frame import Preprocess
from camlucida.registry import Method, get
from camlucida.types import Layout, Loaded, Target
from camlucida.version import __version__

_ASSUMED = "preprocessed as for ImageNet, 224×224, for the model does not say: preprocess= takes another"
LayerAsk = str | int | nn.Module | tuple[str | nn.Module, Layout] | None


def explain(
    model: nn.Module,
    x: Any,
    *,
    target: Any = targets_.top1,
    method: str | Method = "gradcam",
    layer: Any = None,
    preprocess: Preprocess | None = None,
) -> Explanation:
    """Where in the picture the evidence for the model's answer lies.

    ``x`` is a path, PIL picture or array (or a list of them), preprocessed for the model; or a ready batch
    ``b c *space``, a tuple or a mapping of the model's own arguments. ``target`` is a class index or any of
    `targets`; ``layer`` a module, name, glob, place number or (layer, layout), found by itself when not given.

    Raises: InputError, TargetError, LayerError, LayoutError, MethodError; each says what to do.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    >>> e = explain(net, torch.randn(2, 3, 16, 16), target=7)
    >>> e.layer, tuple(e.map.shape)
    ('1', (2, 14, 14))
    """
    return sweep(model, x, targets=[target], methods=[method], layers=[layer], preprocess=preprocess)[0]


def sweep(
    model: nn.Module,
    x: Any,
    *,
    targets: Any = (targets_.top1,),
    methods: Any = ("gradcam",),
    layers: Any = (None,),
    preprocess: Preprocess | None = None,
) -> list[Explanation]:
    """Many answers from one forward pass: every target, by every method, at every layer, nested in that order.

    ``targets``, ``methods`` and ``layers`` are sequences of what `explain` takes one of; one alone stands for itself.

    Raises: as `explain`.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    >>> len(sweep(net, torch.randn(1, 3, 16, 16), targets=range(10), methods=["gradcam", "hirescam"]))
    20
    """
    told = model if isinstance(model, Loaded) else None
    net, labels = (told.net, tuple(told.labels)) if told else (model, ())
    unwrap(net)  # what is no model is refused before anything else is looked at
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise InputError(f"preprocess= takes a camlucida.Preprocess; got {type(preprocess).__name__}.")
    inputs, pictures = prepare(net, x, preprocess or (told.preprocess if told else None))
    start = clock(inputs.x.device)
    asked = [targets_.as_target(t, labels) for t in _several(targets)]
    question = _Question(net, inputs, asked, [get(m) for m in _several(methods)])
    places, seen = question.answer(_several(layers))
    cost = (clock(inputs.x.device) - start) / seen.seconds
    assumed = (_ASSUMED,) if pictures.frames and not (told or preprocess) else ()
    context = _Told(pictures, labels, (*getattr(told, "notes", ()), *assumed), cost, seen.statuses())
    order = [(t, m, n) for t in range(len(asked)) for m in question.methods for n, _ in places]
    return [_explanation(seen, question.targets[t], t, m, n, context) for t, m, n in order]


def _several(asked: Any) -> list[Any]:
    """A list of what was asked for; one thing alone stands for a list of it. Raises: InputError where it is empty."""
    alone = isinstance(asked, str | nn.Module | Method) or not isinstance(asked, Iterable)
    found = [asked] if alone else list(asked)
    if not found:
        raise InputError("a sweep needs at least one target, one method and one layer.")
    return found


@dataclass(frozen=True)
class _Seen:
    """What is left of a forward pass once its graph is gone."""

    answers: Answers
    layouts: dict[str, Layout]
    scores: Float[Tensor, "t b"]
    index: Int[Tensor, "t b"] | None
    logits: Float[Tensor, "b k"] | None
    seconds: float

    def statuses(self) -> dict[tuple[str, Method], list[tuple[maps.Status, ...]]]:
        """The status of every map, by layer and method, then target; all of one kind looked at together."""
        found = {}
        for (name, method), raw in self.answers.maps.items():
            steepest = self.answers.steepest[name]
            noise = 8 * torch.finfo(raw.dtype).eps * steepest * self.answers.largest[name] * method.homogeneous
            flat = maps.status(raw.flatten(0, 1), (steepest == 0).flatten().tolist(), noise.flatten().tolist())
            b = raw.shape[1]
            found[name, method] = [flat[i : i + b] for i in range(0, len(flat), b)]
        return found


@dataclass(frozen=True)
class _Question:
    """Targets and methods asked of one model and one batch."""

    net: nn.Module
    inputs: Inputs
    targets: Sequence[Target]
    methods: Sequence[Method]

    def place(self, ask: LayerAsk) -> tuple[str, Layout | None]:
        """The layer asked for by name, with its layout where that is known before the run."""
        if isinstance(ask, tuple) and len(ask) == 2 and callable(ask[1]):
            return layers_.resolve(self.net, ask[0]), ask[1]
        if not isinstance(ask, str | int | nn.Module | None) or isinstance(ask, bool):
            raise LayerError(f"a layer is a module, a name, a number or (layer, layout); got {ask!r}.")
        if ask is None or isinstance(ask, int):
            seen = self.survey()
            place = seen.choice if ask is None else seen.numbered(ask)
            return place.name, place.layout
        return layers_.resolve(self.net, ask), None

    def survey(self, again: bool = False) -> layers_.Survey:
        # A target of the user's own must itself judge the layers; class targets all agree with the logits.
        own = next((t for t in self.targets if not isinstance(t, targets_.ClassTarget)), None)
        return layers_.survey(self.net, self.inputs, own, again)

    def answer(self, asked: Sequence[LayerAsk]) -> tuple[list[tuple[str, Layout | None]], _Seen]:
        """The places and what they answer; where a remembered place no longer runs, the model is looked at anew."""
        places = [self.place(ask) for ask in asked]
        if len(dict(places)) < len(set(places)):
            raise InputError("a layer was asked for with two layouts at once: ask for one after the other.")
        try:
            return places, self.ask(dict(places))
        except LayerError:
            fresh = [self.place(ask) for ask in asked]  # an error looks at the model again
            if fresh == places:
                raise
            return fresh, self.ask(dict(fresh))

    def ask(self, known: dict[str, Layout | None]) -> _Seen:
        """One forward pass and everything it answers. Raises: LayerError that names the layer to use."""
        try:
            seen = read(self.net, self.inputs, list(known), lambda tape: self._read(tape, known))
        except LayerError as problem:
            raise self._advised(problem) from None
        for name, steepest in seen.answers.steepest.items():
            if bool((steepest == 0).all()):
                self._refuse_blind(name)
        return seen

    def _read(self, tape: Tape, known: dict[str, Layout | None]) -> _Seen:
        count = len(self.inputs.x)
        for name, act in tape.acts.items():
            if len(act) != count:
                rows = f"{len(act)} rows for {count} picture{'s' * (count > 1)}"
                raise LayerError(f"layer {name!r} gave {rows}: windows, heads or steps, which are no map of a picture")
        layouts = {n: layout or self._layout(n, tape.acts[n]) for n, layout in known.items()}
        for name, layout in layouts.items():
            if not has_space(layout(tape.acts[name]).shape[2:]):
                raise LayerError(f"layer {name!r} has one place only: no space is left to show anything in")
        asked = put(self.targets, tape.output, count)
        with torch.autocast(self.inputs.x.device.type, enabled=False):  # maps are summed in full precision
            evidence = Evidence(tape, layouts, unwrap(self.net), asked)
            found = evidence.answers(list(dict.fromkeys(self.methods)))
        try:
            logits = targets_.logits(tape.output).detach()
        except TargetError:
            logits = None  # a model of another kind, explained by a target of the user's own
        return _Seen(found, layouts, asked.scores, asked.index, logits, tape.seconds)

    def _layout(self, name: str, act: Tensor) -> Layout:
        space = tuple(self.inputs.x.shape[2:])
        module = named(unwrap(self.net)).get(name)
        if name == "input" or plain(act.shape, space, module):
            return infer(act.shape, space, module)
        seen = self.survey()
        place = seen.of(name)
        return place.layout if place else infer(act.shape, space, module, seen.grids_before(name))

    def _advised(self, problem: LayerError) -> LayerError:
        """The same error, naming the layer that works."""
        try:
            kind = LayoutError if isinstance(problem, LayoutError) else LayerError
            return kind(f"{str(problem).rstrip('.')}: use layer={self.survey(again=True).choice.name!r}.")
        except (LayerError, TargetError):
            return LayerError(str(problem))

    def _refuse_blind(self, name: str) -> None:
        """Raise where no place of this layer matters though one before it does: the evidence goes another way.

        Where nothing before it matters either, this picture's score is dead, not the layer: that is a status.
        """
        seen = self.survey()
        place = seen.of(name)
        if place is None or place.share > 0:
            return
        if any(p.share > 0 and p.order < place.order for p in seen.all):
            raise LayerError(
                f"the score does not depend on any place of layer {name!r} (its gradient there is exactly zero): "
                f"use layer={seen.choice.name!r}."
            )


@dataclass(frozen=True)
class _Told:
    pictures: Pictures
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    cost: float
    statuses: dict[tuple[str, Method], list[tuple[maps.Status, ...]]]


def _class_of(target: Target, logits: Tensor | None) -> Tensor | None:
    return target.pick(logits) if isinstance(target, targets_.ClassTarget) and logits is not None else None


def _explanation(seen: _Seen, target: Target, t: int, method: Method, name: str, told: _Told) -> Explanation:
    raw = seen.answers.maps[name, method][t].clone()  # its own numbers, not a view of everybody's
    picked = seen.index[t] if seen.index is not None else _class_of(target, seen.logits)
    spoken = str(target) if isinstance(target, targets_.ClassTarget) else getattr(target, "__name__", "own target")
    facts = Facts(
        target=spoken,
        method=method.name,
        title=method.title,
        layer=name,
        layout=getattr(seen.layouts[name], "__name__", str(seen.layouts[name])),
        cost=told.cost,
        version=__version__,
        paper=method.paper,
        class_agnostic=method.class_agnostic,
        notes=told.notes,
    )
    return Explanation(
        map=raw,
        scores=seen.scores[t],
        statuses=told.statuses[name, method][t],
        facts=facts,
        pictures=told.pictures,
        classes=picked,
        logits=seen.logits,
        labels=told.labels,
    )
