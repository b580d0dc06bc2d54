"""`explain` and `sweep`: the composition of everything beneath, and nothing else.

One forward pass, a layout for each layer, the gradients of each target (a closed form where the head has one), the
methods, and `Explanation`s that remember all of it.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack

import torch
from torch import nn

from camlucida import maps
from camlucida.core import settle
from camlucida.core import targets as targets_
from camlucida.core.capture import clock
from camlucida.core.explanation import Explanation, Facts, Pictures
from camlucida.core.inputs import Inputs
from camlucida.core.outputs import Which, check
from camlucida.core.prepare import prepare
from camlucida.core.question import Question, Seen, class_of
from camlucida.core.scope import one_walk, unwrap
from camlucida.errors import InputError, TargetError, did_you_mean
from camlucida.frame import Preprocess
from camlucida.registry import Method, get
from camlucida.tasks import plain
from camlucida.types import Loaded, Target
from camlucida.version import __version__

_ASSUMED = "preprocessed as for ImageNet, 224×224, for the model does not say: preprocess= takes another"

_BRANCH = "no single layer carries all the evidence: the map shows one branch of several"


class Also(TypedDict, total=False):
    """What `explain` and `sweep` can be given beside: see there."""

    output: Which


_KNOWN = ("target", "targets", "method", "methods", "layer", "layers", "preprocess", *Also.__annotations__)


def explain(
    model: nn.Module,
    x: Any,
    *,
    target: Any = targets_.top1,
    method: str | Method = "gradcam",
    layer: Any = None,
    preprocess: Preprocess | None = None,
    **also: Unpack[Also],
) -> Explanation:
    """Where in the picture the evidence for the model's answer lies.

    ``x`` is a path, PIL picture or array (or a list of them), preprocessed for the model; or a ready batch
    ``b c *space``, a tuple or a mapping of the model's own arguments. ``target`` is a class index or any of
    `targets`; ``layer`` a module, name, glob, place number or (layer, layout), found by itself when not given.
    ``also``: where the model returns several things, ``output`` is the one meant: a key, an attribute, a place or a
    function of its answer, and targets then speak of that alone.

    Raises: InputError, TargetError, LayerError, LayoutError, MethodError; each says what to do.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    >>> e = explain(net, torch.randn(2, 3, 16, 16), target=7)
    >>> e.layer, tuple(e.map.shape)
    ('1', (2, 14, 14))
    """
    return sweep(model, x, targets=[target], methods=[method], layers=[layer], preprocess=preprocess, **also)[0]


def sweep(
    model: nn.Module,
    x: Any,
    *,
    targets: Any = (targets_.top1,),
    methods: Any = ("gradcam",),
    layers: Any = (None,),
    preprocess: Preprocess | None = None,
    **also: Unpack[Also],
) -> list[Explanation]:
    """Many answers from one forward pass: every target, by every method, at every layer, nested in that order.

    ``targets``, ``methods`` and ``layers`` are sequences of what `explain` takes one of; one alone stands for itself.

    Raises: as `explain`.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    >>> len(sweep(net, torch.randn(1, 3, 16, 16), targets=range(10), methods=["gradcam", "hirescam"]))
    20
    """
    told = model if isinstance(model, Loaded) else None
    net, labels = (told.net, tuple(told.labels)) if told else (model, ())
    _check_also(also)
    unwrap(net)  # what is no model is refused before anything else is looked at
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise InputError(f"preprocess= takes a camlucida.Preprocess; got {type(preprocess).__name__}.")
    inputs, pictures = prepare(net, x, preprocess or (told.preprocess if told else None))
    inputs = replace(inputs, output=also["output"]) if "output" in also else inputs
    start = clock(inputs.x.device)
    named = [targets_.as_target(t, labels) for t in _several(targets)]
    subjects = settle.Subjects(pictures, labels, unwrap(net))
    asks = [get(m) for m in _several(methods)]
    with one_walk():
        question, pairs, seen = _answered(net, inputs, named, subjects, asks, _several(layers))
        laid = question.centres(seen)
    cost = (clock(inputs.x.device) - start) / seen.seconds
    assumed = (_ASSUMED,) if pictures.frames and not (told or preprocess) else ()
    notes, sure = (*getattr(told, "notes", ()), *assumed), getattr(told, "confident", None)
    context = _Told(pictures, labels, notes, cost, seen.statuses(), sure, laid, question.branches)
    order = [(t, m, n) for t in range(len(named)) for m, n in pairs]
    return [_explanation(seen, question.targets[t], t, m, n, context) for t, m, n in order]


def _answered(
    net: nn.Module,
    inputs: Inputs,
    asked: Sequence[Target],
    subjects: settle.Subjects,
    methods: Sequence[Method],
    layers: Sequence[Any],
) -> tuple[Question, list[tuple[Method, str]], Seen]:
    """The question and its answer; where the model has no classes, its own best answer is a region or a box."""

    def answered(kind: plain.Kind | None) -> tuple[Question, list[tuple[Method, str]], Seen]:
        given = plain.meant(kind, asked)
        question = Question(net, inputs, settle.told(given, subjects), methods, given)
        return question, *question.answer(layers)

    before = plain.known(net, inputs)
    try:
        return answered(before)
    except TargetError:
        now = plain.looked_at(net, inputs, len(subjects.labels)) if plain.asks_own(asked) else before
        if now is before:
            raise
    return answered(now)


def _check_also(also: Also) -> None:
    """Raises: TypeError, as a signature without ``**also`` would; TargetError where ``output`` can mean nothing."""
    if strange := [name for name in also if name not in Also.__annotations__]:
        raise TypeError(f"unexpected keyword argument {strange[0]!r}.{did_you_mean(strange[0], _KNOWN, show=9)}")
    check(also.get("output"))


def _several(asked: Any) -> list[Any]:
    """A list of what was asked for; one thing alone stands for a list of it. Raises: InputError where it is empty."""
    alone = isinstance(asked, str | nn.Module | Method) or not isinstance(asked, Iterable)
    found = [asked] if alone else list(asked)
    if not found:
        raise InputError("a sweep needs at least one target, one method and one layer.")
    return found


@dataclass(frozen=True)
class _Told:
    pictures: Pictures
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    cost: float
    statuses: dict[tuple[str, Method], list[tuple[maps.Status, ...]]]
    confident: float | None
    laid: dict[str, tuple[tuple[int, ...], maps.Centres | None]]
    branches: Collection[str]


def _spoken(target: Target) -> str:
    own = isinstance(target, targets_.ClassTarget | settle.Task)
    return str(target) if own else getattr(target, "__name__", "own target")


def _meant(seen: Seen, target: Target, t: int) -> settle.Settled:
    """The classes meant, and how probable they are where the logits alone do not say it."""
    if held := seen.settled[t]:
        return held
    index = seen.index[t] if seen.index is not None else class_of(target, seen.logits)
    if not isinstance(target, targets_.ClassTarget) or index is None or seen.logits is None:
        return settle.Settled((), index)
    if target.kind != "binary":
        return settle.Settled((), index)
    meant, y = target.meant(index, seen.logits), seen.logits[:, 0].float()
    return settle.Settled((), meant, torch.where(meant > 0, y.sigmoid(), (-y).sigmoid()))


def _explanation(seen: Seen, target: Target, t: int, method: Method, name: str, told: _Told) -> Explanation:
    raw = seen.answers.maps[name, method][t].clone()  # its own numbers, not a view of everybody's
    meant, (grid, centres) = _meant(seen, target, t), told.laid[name]
    return Explanation(
        map=raw,
        scores=seen.scores[t],
        statuses=told.statuses[name, method][t],
        facts=_facts(seen, target, method, name, told),
        pictures=told.pictures,
        classes=meant.classes,
        logits=seen.logits,
        labels=told.labels,
        sure=meant.sure,
        where=meant.where,
        centres=centres if raw.shape[1:] == grid else None,
    )


def _facts(seen: Seen, target: Target, method: Method, name: str, told: _Told) -> Facts:
    return Facts(
        target=_spoken(target),
        method=method.label,
        title=method.title,
        layer=name,
        layout=getattr(seen.layouts[name], "__name__", str(seen.layouts[name])),
        cost=told.cost,
        version=__version__,
        paper=method.paper,
        class_agnostic=method.class_agnostic,
        notes=(*told.notes, _BRANCH) if name in told.branches else told.notes,
        confident=told.confident,
        kind=target.kind if isinstance(target, targets_.ClassTarget) else "class",
    )
