"""Ways of scoring a class: functions of the logits and each picture's class to one number a picture.

To add one, add a function to `SCORES`, or to `CONTRASTS` where it has numbers of its own: those follow its name after
colons, as in ``against:285``.
"""

import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from camlucida.errors import TargetError, did_you_mean
from camlucida.types import Scores

Logits = Float[Tensor, "b k"]
Classes = Int[Tensor, " b"]
Way = Callable[[Logits, Classes], Scores]


def take(values: Logits, index: Classes) -> Scores:
    """Each picture's value of its class."""
    return values.gather(1, index[:, None])[:, 0]


def probable(y: Float[Tensor, "b k *space"]) -> Float[Tensor, "b k *space"]:
    """The softmax over the classes, or the scores themselves where they are probabilities that add up to one.

    >>> probable(torch.tensor([[0.25, 0.75]])).tolist()
    [[0.25, 0.75]]
    """
    slack = max(1e-3, torch.finfo(y.dtype).eps)
    y = y.float()
    given = bool((y >= 0).all()) and bool(((y.sum(1) - 1).abs() < slack).all())
    return y if given else y.softmax(1)


def _margin(y: Logits, index: Classes) -> Scores:
    if y.shape[1] < 2:
        raise TargetError("a margin needs at least two classes; this output has one.")
    rivals = y.scatter(1, index[:, None], -torch.inf)
    return take(y, index) - rivals.amax(1)


def _side(y: Scores) -> Scores:
    """+1 where a number is above 0, −1 elsewhere; it takes no part in the gradient."""
    return (y.detach() > 0).to(y) * 2 - 1


SCORES: dict[str, Way] = {
    "logit": take,
    "probability": lambda y, index: take(y.softmax(1), index),
    "log_probability": lambda y, index: take(y.log_softmax(1), index),
    "margin": _margin,
    "logit_minus_mean": lambda y, index: take(y, index) - y.mean(1),
    "rest": lambda y, index: take(y, index) + take(y.log_softmax(1), index),
    "sigmoid": lambda y, index: take(y.sigmoid(), index),
    "minus": lambda y, index: -take(y, index),
    "side": lambda y, index: take(y, index) * _side(take(y, index)),
}


def refuse_missing(indices: Iterable[int], k: int) -> None:
    """Raises: TargetError where a class is none of ``k``."""
    wrong = [i for i in indices if not 0 <= i < k]
    if wrong:
        raise TargetError(f"class {wrong[0]} does not exist: this model has {k} classes, 0 to {k - 1}.")


def _against(*rivals: str) -> Way:
    """``y_k − Σ_j w_j y_j``; each rival is ``j``, or ``j*w`` with its weight."""
    pairs = [(int(j), float(w or 1)) for j, _, w in (r.partition("*") for r in rivals)]

    def contrast(y: Logits, index: Classes) -> Scores:
        refuse_missing([j for j, _ in pairs], y.shape[1])
        return take(y, index) - torch.stack([w * y[:, j] for j, w in pairs]).sum(0)

    return contrast


def _finer(rivals: str = "3", alpha: str = "0.6") -> Way:
    """``y_k − α Σ_j p_j y_j / Σ_j p_j`` over the rivals whose logits are nearest; the ``p`` are held fixed."""
    count, share = int(rivals), float(alpha)
    if count < 1 or not math.isfinite(share):
        raise ValueError

    def contrast(y: Logits, index: Classes) -> Scores:
        near, weights = nearest(y.detach(), index, count)
        return take(y, index) - share * (weights * y.gather(1, near)).sum(1)

    return contrast


def nearest(y: Logits, index: Classes, count: int) -> tuple[Int[Tensor, "b r"], Float[Tensor, "b r"]]:
    """The ``count`` classes with the nearest logits, and their share of each other's probability."""
    if y.shape[1] < 2:
        raise TargetError("a contrast needs at least two classes; this output has one.")
    gaps = (y - take(y, index)[:, None]).abs().scatter(1, index[:, None], torch.inf)
    near = gaps.argsort(dim=1, stable=True)[:, : min(count, y.shape[1] - 1)]  # of equally near ones the first
    return near, y.gather(1, near).softmax(1)  # p_j / Σ p of the softmax over all classes, with no underflow


CONTRASTS: dict[str, Callable[..., Way]] = {"against": _against, "finer": _finer}


def scoring(score: str) -> Way:
    """The way of scoring of this name; a contrast's numbers follow after colons, as in ``against:285``.

    Raises: TargetError where there is none, or its numbers are none.
    """
    name, *given = score.split(":")
    if name in SCORES and not given:
        return SCORES[name]
    if name not in CONTRASTS:
        raise TargetError(f"there is no score {score!r}.{did_you_mean(name, [*SCORES, *CONTRASTS], show=9)}")
    try:
        if name == "against" and not given:
            raise ValueError
        return CONTRASTS[name](*given)
    except (ValueError, TypeError):
        raise TargetError(
            f"{score!r} is no contrast: say against:285, or finer:3:0.6 (one rival at least, and alpha)."
        ) from None


def spoken(score: str) -> str:
    """A way of scoring in words, to follow those for what is scored; nothing for the logit.

    >>> spoken("log_probability"), spoken("against:285")
    (', log probability', ' against 285')
    """
    name, *given = score.split(":")
    if name == "finer":
        return f" against its {given[0] if given else 3} nearest rivals"
    if given:
        return f" against {', '.join(j.partition('*')[0] for j in given)}"
    return "" if name == "logit" else f", {name.replace('_', ' ')}"


def frozen(score: str, y: Float[Tensor, "1 k"], k: int) -> str:
    """The same way of scoring class ``k`` with rivals, weights and side held as one picture's logits have them.

    >>> frozen("finer:1:0.5", torch.tensor([[3.0, 1.0, 2.0]]), 0)
    'against:2*0.5'
    """
    name, *given = score.split(":")
    if name == "side":
        return "logit" if float(y[0, k]) > 0 else "minus"
    if name != "finer":
        return score
    count, share = [*given, *("3", "0.6")[len(given) :]]
    near, w = nearest(y.detach().double(), torch.tensor([k], device=y.device), int(count))
    rivals = (f"{j}*{float(share) * v}" for j, v in zip(near[0].tolist(), w[0].tolist(), strict=True))
    return ":".join(["against", *rivals])
