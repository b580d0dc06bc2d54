"""Targets: what is explained. A target is any function from the model's output to one score a picture.

The ones here read class logits: `top1` (each picture's own best class), `classes` (named ones), `rank` and `top`
(runners-up); `against` and `finer` ask why this class rather than another. Each class can be scored as the logit, the
probability and so on, by any of `SCORES`.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from camlucida.core.outputs import ends_in_sigmoid
from camlucida.core.outputs import logits as logits
from camlucida.core.scores import CONTRASTS as CONTRASTS
from camlucida.core.scores import SCORES as SCORES
from camlucida.core.scores import Classes, Logits, frozen, refuse_missing, scoring, spoken, take
from camlucida.errors import TargetError, did_you_mean
from camlucida.types import Output, Scores, Target

# -------------------------------------------------------------------------------------------------------- targets


Kind = Literal["class", "label", "binary", "value"]
"""What a column of the output is: one of classes that exclude each other; a label that may be there beside others; the
one logit of a question with two answers; or a number."""


@final
@dataclass(frozen=True)
class ClassTarget:
    """The score of one class a picture: a fixed one, one for each picture, or the one of a given rank."""

    indices: tuple[int, ...] = ()  # empty: by rank
    rank: int = 0
    score: str = "logit"
    kind: Kind = "class"

    def __call__(self, output: Output) -> Scores:
        y = logits(output)
        return scoring(self.score)(y.float() if y.dtype in (torch.float16, torch.bfloat16) else y, self.pick(y))

    def pick(self, y: Logits) -> Classes:
        """The class of each picture, ``b``. Raises: TargetError where a class or a picture does not exist."""
        b, k = y.shape
        if self.kind == "binary" and k != 1:
            raise TargetError(
                f"binary() is for a model of one number a picture; this one has {k}: a class of {k} is target=0 to "
                f"{k - 1}, and labels that do not exclude each other are cl.labels(0) to cl.labels({k - 1})."
            )
        if not self.indices:
            if self.rank >= k:
                raise TargetError(f"rank {self.rank + 1} was asked for, but the model has {k} classes.")
            return y.detach().topk(self.rank + 1, dim=1).indices[:, self.rank]
        refuse_missing(self.indices, k)
        if len(self.indices) not in (1, b):
            raise TargetError(
                f"{len(self.indices)} classes for {b} pictures: give one for all or one for each; "
                "several classes of every picture are sweep(model, x, targets=[…])."
            )
        return torch.tensor(self.indices, device=y.device).expand(b)

    def fixed(self, k: int, y: Float[Tensor, "1 k"]) -> "ClassTarget":
        """The target that class ``k`` of one picture is, its rivals and their weights held as its logits have them."""
        k = 0 if self.kind == "binary" else k  # its one column, whichever class that was said to be
        return ClassTarget((k,), score=frozen(self.score, y, k), kind=self.kind)

    def meant(self, index: Classes, y: Logits) -> Classes:
        """The class that each picture's column stands for: of a binary question 1 above zero's side, 0 below."""
        if self.kind != "binary":
            return index
        sides = {"minus": torch.zeros_like(index), "side": (take(y.detach(), index) > 0).to(index)}
        return sides.get(self.score, torch.ones_like(index))

    def __str__(self) -> str:
        if self.kind == "binary":
            return {"minus": "class 0", "side": "the likelier of two classes"}.get(self.score, "class 1")
        if self.kind == "value":
            which = f"output {self.indices[0]}" if len(set(self.indices)) == 1 else "output per picture"
            return f"{which}, {'lowered' if self.score == 'minus' else 'raised'}"
        return self._spoken().replace("class", "label") if self.kind == "label" else self._spoken()

    def _spoken(self) -> str:
        if self.indices:
            what = "class " + (str(self.indices[0]) if len(set(self.indices)) == 1 else "per picture")
        else:
            what = f"top {self.rank + 1}"
        return what + spoken(self.score)


def classes(index: Any, score: str = "logit") -> ClassTarget:
    """The class of this index, or (a sequence) one class for each picture of the batch.

    ``score``: logit, probability, log_probability, margin (over the best other class), logit_minus_mean, rest (the
    logit plus the log probability, after ShapleyCAM), sigmoid, minus (the logit's negative), side (the logit away from
    zero, on whichever side of it the picture is), or a contrast, as `against` and `finer` make them.

    Raises: TargetError where an index is no whole number or the way of scoring is unknown.

    >>> classes([1, 0])(torch.tensor([[0.1, 0.9], [0.8, 0.2]])).tolist()
    [0.8999999761581421, 0.800000011920929]
    """
    scoring(score)
    several = isinstance(index, Iterable) and getattr(index, "ndim", 1) > 0
    found = tuple(_whole(i) for i in (index if several else [index]))
    if not found:
        raise TargetError("classes() was given an empty sequence: name at least one class.")
    return ClassTarget(found, score=score)


def rank(place: int, score: str = "logit") -> ClassTarget:
    """Each picture's own class at this place of its ranking: 1 is the best, 2 the runner-up."""
    if _whole(place) < 1:
        raise TargetError(f"rank {place} does not exist: ranks begin at 1.")
    scoring(score)
    return ClassTarget(rank=_whole(place) - 1, score=score)


def top(count: int, score: str = "logit") -> list[ClassTarget]:
    """The targets of the ``count`` best classes of each picture, best first."""
    return [rank(place + 1, score) for place in range(count)]


top1 = ClassTarget()


def against(index: Any, *rivals: Any) -> ClassTarget:
    """Why this class and not those: ``y_a − mean_b y_b``; evidence that both share falls out of the map.

    ``index`` as for `classes`, or None for each picture's own best class. Gradient maps that are linear in the
    gradient are the difference of the classes' own maps.

    Raises: TargetError where an index is no whole number, no rival is named, or a class is its own rival.

    >>> against(281, 285)(torch.arange(1000.0)[None]).tolist(), str(against(281, 285))
    ([-4.0], 'class 281 against 285')
    """
    others = [_whole(j) for j in rivals]
    share = "" if len(others) == 1 else f"*{1 / max(len(others), 1)!r}"
    found = _contrast(index, ":".join(["against", *(f"{j}{share}" for j in others)]))
    if both := set(others) & set(found.indices):
        raise TargetError(f"class {min(both)} against itself is always zero: name another class.")
    return found


def finer(index: Any = None, rivals: int = 3, alpha: float = 0.6) -> ClassTarget:
    """What tells a class from the ones most like it: ``y_k − α Σ_j p_j y_j / Σ_j p_j``. [zhang2025]

    ``j`` are the ``rivals`` classes whose logits are nearest to the class's own, ``p`` their probabilities, which take
    no part in the gradient. ``index`` as for `classes`, or None for each picture's own best class.

    Raises: TargetError where an index is no whole number or there are no rivals.

    >>> finer(0, rivals=1, alpha=0.5)(torch.tensor([[3.0, 2.0, -9.0]])).tolist()
    [2.0]
    """
    return _contrast(index, f"finer:{_whole(rivals)}:{float(alpha)!r}")


def _contrast(index: Any, score: str) -> ClassTarget:
    return rank(1, score) if index is None else classes(index, score)


def _whole(value: Any) -> int:
    try:
        if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
            raise TypeError  # True is an index to Python, but a mask to whoever wrote it
        return operator.index(value)
    except TypeError:
        raise TargetError(f"a class is asked for by its index, a whole number; got {value!r}.") from None


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


def refuse_sigmoid(asked: Sequence[Target], y: Logits) -> None:
    """Raises: TargetError where labels or a binary answer are asked for, and what should be logits are a sigmoid's."""
    if any(isinstance(t, ClassTarget) and t.kind in ("label", "binary") for t in asked) and ends_in_sigmoid(y):
        raise TargetError(
            "this model ends in a sigmoid itself, and labels() and binary() read what comes before it: say "
            "output=torch.logit beside them."
        )


def picks(asked: Sequence[ClassTarget], y: Logits) -> Int[Tensor, "t b"]:
    """The class of every target and picture, in one go where each target names one. Raises: TargetError."""
    if not all(len(t.indices) == 1 and t.kind != "binary" for t in asked):
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
        return scoring(ways[0])(y.flatten(0, 1), index.flatten()).reshape(len(asked), -1)
    rows = {way: [i for i, w in enumerate(ways) if w == way] for way in dict.fromkeys(ways)}
    found = {
        i: value
        for way, at in rows.items()
        for i, value in zip(
            at, scoring(way)(y[at].flatten(0, 1), index[at].flatten()).reshape(len(at), -1), strict=True
        )
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
