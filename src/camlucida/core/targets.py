"""Targets: what is explained. A target is any function from the model's output to one score a picture.

The ones here read class logits: `top1` (each picture's own best class), `classes` (named ones), `rank` and `top`
(runners-up). Each can be scored as the logit, the probability and so on; to add a way of scoring, add a function to
`SCORES`.
"""

import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from camlucida.core.structure import parts
from camlucida.errors import TargetError, did_you_mean
from camlucida.types import Output, Scores, Target

Logits = Float[Tensor, "b k"]
Classes = Int[Tensor, " b"]


def logits(output: Output, count: int | None = None) -> Logits:
    """The class logits in whatever a model returns, ``b k``; a model of one number a picture has one class.

    Raises: TargetError where there is none, more than one candidate, or not a row for each of ``count`` pictures.

    >>> logits({"logits": torch.zeros(2, 5), "hidden": torch.zeros(2, 9, 4)}).shape
    torch.Size([2, 5])
    """
    y = _found(output)
    if count is not None and len(y) != count:
        raise TargetError(
            f"the model gave {len(y)} rows of scores for {count} picture{'s' * (count != 1)}, so they are no scores of "
            "the pictures: does it squeeze or fold its batch axis? Pass a target of your own if that is meant."
        )
    return y


def _found(output: Output) -> Logits:
    if isinstance(output, Tensor):
        return _as_logits(output)
    fields = output if isinstance(output, Mapping) else _fields(output)
    for name in ("logits", "out"):
        if isinstance(fields.get(name), Tensor):
            return _as_logits(fields[name])
    flat = [v for v in parts(output) if isinstance(v, Tensor) and v.dim() == 2 and v.is_floating_point()]
    if len(flat) == 1:
        return flat[0]
    held = ", ".join(map(str, fields)) or type(output).__name__
    raise TargetError(
        f"{len(flat)} outputs could be the class scores (the model returns {held}): "
        "pass a target of your own, as target=lambda output: output[...][:, 281]."
    )


def _fields(output: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    return {str(i): v for i, v in enumerate(parts(output))}


def _as_logits(output: Tensor) -> Logits:
    if output.dim() == 1:
        return output[:, None]
    if output.dim() == 2:
        return output
    raise TargetError(
        f"the model returns a tensor of shape {tuple(output.shape)}, not one score a class: "
        "pass a target that reduces it to one score a picture, as target=lambda y: y[:, 8].mean((1, 2))."
    )


# ------------------------------------------------------------------------------------------------ ways of scoring


def _take(values: Logits, index: Classes) -> Scores:
    return values.gather(1, index[:, None])[:, 0]


def _margin(y: Logits, index: Classes) -> Scores:
    if y.shape[1] < 2:
        raise TargetError("a margin needs at least two classes; this output has one.")
    rivals = y.scatter(1, index[:, None], -torch.inf)
    return _take(y, index) - rivals.amax(1)


SCORES: dict[str, Callable[[Logits, Classes], Scores]] = {
    "logit": _take,
    "probability": lambda y, index: _take(y.softmax(1), index),
    "log_probability": lambda y, index: _take(y.log_softmax(1), index),
    "margin": _margin,
    "logit_minus_mean": lambda y, index: _take(y, index) - y.mean(1),
}


# -------------------------------------------------------------------------------------------------------- targets


@final
@dataclass(frozen=True)
class ClassTarget:
    """The score of one class a picture: a fixed one, one for each picture, or the one of a given rank."""

    indices: tuple[int, ...] = ()  # empty: by rank
    rank: int = 0
    score: str = "logit"

    def __call__(self, output: Output) -> Scores:
        y = logits(output)
        return SCORES[self.score](y.float() if y.dtype in (torch.float16, torch.bfloat16) else y, self.pick(y))

    def pick(self, y: Logits) -> Classes:
        """The class of each picture, ``b``. Raises: TargetError where a class or a picture does not exist."""
        b, k = y.shape
        if not self.indices:
            if self.rank >= k:
                raise TargetError(f"rank {self.rank + 1} was asked for, but the model has {k} classes.")
            return y.detach().topk(self.rank + 1, dim=1).indices[:, self.rank]
        wrong = [i for i in self.indices if not 0 <= i < k]
        if wrong:
            raise TargetError(f"class {wrong[0]} does not exist: this model has {k} classes, 0 to {k - 1}.")
        if len(self.indices) not in (1, b):
            raise TargetError(
                f"{len(self.indices)} classes for {b} pictures: give one for all or one for each; "
                "several classes of every picture are sweep(model, x, targets=[…])."
            )
        return torch.tensor(self.indices, device=y.device).expand(b)

    def __str__(self) -> str:
        if self.indices:
            what = "class " + (str(self.indices[0]) if len(set(self.indices)) == 1 else "per picture")
        else:
            what = f"top {self.rank + 1}"
        return what if self.score == "logit" else f"{what}, {self.score.replace('_', ' ')}"


def classes(index: Any, score: str = "logit") -> ClassTarget:
    """The class of this index, or (a sequence) one class for each picture of the batch.

    ``score``: logit, probability, log_probability, margin (over the best other class) or logit_minus_mean.

    Raises: TargetError where an index is no whole number or the way of scoring is unknown.

    >>> classes([1, 0])(torch.tensor([[0.1, 0.9], [0.8, 0.2]])).tolist()
    [0.8999999761581421, 0.800000011920929]
    """
    _known(score)
    several = isinstance(index, Iterable) and getattr(index, "ndim", 1) > 0
    found = tuple(_whole(i) for i in (index if several else [index]))
    if not found:
        raise TargetError("classes() was given an empty sequence: name at least one class.")
    return ClassTarget(found, score=score)


def rank(place: int, score: str = "logit") -> ClassTarget:
    """Each picture's own class at this place of its ranking: 1 is the best, 2 the runner-up."""
    if _whole(place) < 1:
        raise TargetError(f"rank {place} does not exist: ranks begin at 1.")
    _known(score)
    return ClassTarget(rank=_whole(place) - 1, score=score)


def top(count: int, score: str = "logit") -> list[ClassTarget]:
    """The targets of the ``count`` best classes of each picture, best first."""
    return [rank(place + 1, score) for place in range(count)]


top1 = ClassTarget()


def _whole(value: Any) -> int:
    try:
        if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
            raise TypeError  # True is an index to Python, but a mask to whoever wrote it
        return operator.index(value)
    except TypeError:
        raise TargetError(f"a class is asked for by its index, a whole number; got {value!r}.") from None


def _known(score: str) -> None:
    if score not in SCORES:
        raise TargetError(f"there is no score {score!r}.{did_you_mean(score, SCORES, show=9)}")


def as_target(target: Any, labels: Sequence[str] = ()) -> Target:
    """A class index, or its label where the model has labels, stands for `classes`; a callable is a target already.

    Raises: TargetError for anything else, a list among it, which could mean two things.
    """
    if isinstance(target, Sequence) and not isinstance(target, str):
        raise TargetError(
            "a list of classes could mean two things: one class for each picture is target=classes([…]); "
            "several classes of every picture are sweep(model, x, targets=[…])."
        )
    if isinstance(target, str):
        return classes(_labelled(target, labels))
    return target if callable(target) and not isinstance(target, Tensor) else classes(target)


def picks(asked: Sequence[ClassTarget], y: Logits) -> Int[Tensor, "t b"]:
    """The class of every target and picture, in one go where each target names one. Raises: TargetError."""
    if not all(len(t.indices) == 1 for t in asked):
        return torch.stack([t.pick(y) for t in asked])
    index = [t.indices[0] for t in asked]
    asked[index.index(min(index))].pick(y), asked[index.index(max(index))].pick(y)  # the two that could be out of range
    return torch.tensor(index, device=y.device)[:, None].expand(-1, len(y))


def class_scores(
    asked: Sequence[ClassTarget], y: Float[Tensor, "t b k"], index: Int[Tensor, "t b"]
) -> Float[Tensor, "t b"]:
    """The scores of many class targets, each from its own copy of the logits: one operation for each way of scoring."""
    ways = [t.score for t in asked]
    if len(set(ways)) == 1:
        return SCORES[ways[0]](y.flatten(0, 1), index.flatten()).reshape(len(asked), -1)
    rows = {way: [i for i, w in enumerate(ways) if w == way] for way in dict.fromkeys(ways)}
    found = {
        i: value
        for way, at in rows.items()
        for i, value in zip(at, SCORES[way](y[at].flatten(0, 1), index[at].flatten()).reshape(len(at), -1), strict=True)
    }
    return torch.stack([found[i] for i in range(len(asked))])


def scores(asked: Sequence[Target], output: Output, count: int) -> Float[Tensor, "t b"]:
    """Every target's scores, checked. Raises: TargetError where a target does not give one score a picture."""
    return torch.stack([score(t, output, count) for t in asked])


def _labelled(name: str, labels: Sequence[str]) -> int:
    known = [label.casefold() for label in labels]
    if name.casefold() in known:
        return known.index(name.casefold())
    raise TargetError(f"this model has no class called {name!r}.{did_you_mean(name, labels)}")


def _named(target: Target) -> str:
    return str(target) if isinstance(target, ClassTarget) else getattr(target, "__name__", "the one given")


def score(target: Target, output: Output, count: int) -> Scores:
    """The target's scores, checked: floating, one for each of ``count`` pictures.

    Raises: TargetError where they are not.
    """
    found = target(output)
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if isinstance(found, Tensor) and not found.is_floating_point():
        raise TargetError(
            f"a target gives floating-point scores; {_named(target)} gave {found.dtype}, which has no gradient."
        )
    if not isinstance(found, Tensor) or (shape not in ((count,), (count, 1)) and not (count == 1 and found.dim() == 0)):
        raise TargetError(f"a target gives one score a picture, shape ({count},); {_named(target)} gave {shape}.")
    return found.reshape(count)
