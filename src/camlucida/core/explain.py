"""`explain` and `sweep`: the composition of everything beneath, and nothing else.

One forward pass, a layout for each layer, the gradients of each target (a closed form where the head has one), the
methods, and `Explanation`s that remember all of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from camlucida import maps
from camlucida.core import targets as targets_
from camlucida.core.capture import clock
from camlucida.core.explanation import Explanation, Facts, Pictures
from camlucida.core.prepare import prepare
from camlucida.core.question import Question, Seen, class_of
from camlucida.core.scope import unwrap
from camlucida.errors import InputError
from camlucida.frame import Preprocess
from camlucida.registry import Method, get
from camlucida.types import Loaded, Target
from camlucida.version import __version__

_ASSUMED = "preprocessed as for ImageNet, 224×224, for the model does not say: preprocess= takes another"


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

    >>> import torch
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

    >>> import torch
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
    question = Question(net, inputs, asked, [get(m) for m in _several(methods)])
    pairs, seen = question.answer(_several(layers))
    cost = (clock(inputs.x.device) - start) / seen.seconds
    assumed = (_ASSUMED,) if pictures.frames and not (told or preprocess) else ()
    notes, sure = (*getattr(told, "notes", ()), *assumed), getattr(told, "confident", None)
    context = _Told(pictures, labels, notes, cost, seen.statuses(), sure)
    order = [(t, m, n) for t in range(len(asked)) for m, n in pairs]
    return [_explanation(seen, question.targets[t], t, m, n, context) for t, m, n in order]


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


def _spoken(target: Target) -> str:
    return str(target) if isinstance(target, targets_.ClassTarget) else getattr(target, "__name__", "own target")


def _explanation(seen: Seen, target: Target, t: int, method: Method, name: str, told: _Told) -> Explanation:
    raw = seen.answers.maps[name, method][t].clone()  # its own numbers, not a view of everybody's
    picked = seen.index[t] if seen.index is not None else class_of(target, seen.logits)
    facts = Facts(
        target=_spoken(target),
        method=method.label,
        title=method.title,
        layer=name,
        layout=getattr(seen.layouts[name], "__name__", str(seen.layouts[name])),
        cost=told.cost,
        version=__version__,
        paper=method.paper,
        class_agnostic=method.class_agnostic,
        notes=told.notes,
        confident=told.confident,
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
