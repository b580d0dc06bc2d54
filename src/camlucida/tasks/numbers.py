"""Columns that are no classes excluding each other: labels of which several hold, one logit for yes or no, numbers.

Each is a `ClassTarget`, so that closed forms, methods that ask again and sweeps take them as they take classes; what
differs is what is said of them: a label's probability is a sigmoid, a number has none.
"""

from typing import Any

from camlucida.core.targets import ClassTarget, classes, rank
from camlucida.errors import TargetError


def labels(index: Any = None, score: str = "logit") -> ClassTarget:
    """One of labels that do not exclude each other: probability ``σ(y_k)`` of its own, whatever the others are.

    ``index`` and ``score`` as for `classes`; None is each picture's likeliest label. Several labels of every picture
    are ``sweep(model, x, targets=[labels(3), labels(7)])``. For a model that ends in a sigmoid itself, say
    ``output=torch.logit`` beside it.

    Raises: TargetError where an index is no whole number, or the score weighs labels against each other.

    >>> import torch
    >>> labels(1)(torch.tensor([[0.0, 3.0, 2.0]])).tolist(), str(labels(1))
    ([3.0], 'label 1')
    """
    if score not in ("logit", "sigmoid", "minus"):
        raise TargetError(
            f"score={score!r} weighs classes that exclude each other, and labels do not: "
            "say 'logit', 'sigmoid', or 'minus' for what speaks against it."
        )
    found = rank(1, score) if index is None else classes(index, score)
    return ClassTarget(found.indices, found.rank, score, "label")


def binary(index: Any = None) -> ClassTarget:
    """A class of a model with one logit: ``y`` for class 1, ``−y`` for class 0, probability ``σ(±y)``.

    None is the likelier one of each picture.

    Raises: TargetError where the index is neither 0 nor 1; on a model with more than one number a picture.

    >>> import torch
    >>> y = torch.tensor([[2.0], [-3.0]])
    >>> binary(1)(y).tolist(), binary(0)(y).tolist(), binary()(y).tolist()
    ([2.0, -3.0], [-2.0, 3.0], [2.0, 3.0])
    """
    if index is not None and (isinstance(index, bool) or index not in (0, 1)):
        raise TargetError(f"a model of one logit has the classes 0 and 1; got {index!r}.")
    score = "side" if index is None else "logit" if index == 1 else "minus"
    return ClassTarget((0,), score=score, kind="binary")


def value(index: Any = 0, sign: Any = 1) -> ClassTarget:
    """A number that the model gives, ``sign · y_k``: what raises it (``sign=+1``) or what lowers it (``sign=−1``).

    ``index`` as for `classes`. It has no probability; captions show the number itself.

    Raises: TargetError where an index is no whole number or the sign is neither 1 nor −1.

    >>> import torch
    >>> value(sign=-1)(torch.tensor([[34.5]])).tolist(), str(value(sign=-1))
    ([-34.5], 'output 0, lowered')
    """
    if isinstance(sign, bool) or sign not in (1, -1):
        raise TargetError(f"sign is 1 for what raises the number and −1 for what lowers it; got {sign!r}.")
    score = "logit" if sign == 1 else "minus"
    return ClassTarget(classes(index).indices, score=score, kind="value")
