"""What is asked of a combination, what it is asked about, and what may be said of its map."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from torch import nn

from camlucida import maps
from camlucida.core.capture import Inputs
from camlucida.core.explanation import Explanation
from camlucida.core.outputs import Which
from camlucida.core.prepare import prepare
from camlucida.core.settle import Task
from camlucida.core.targets import ClassTarget, as_target, top1
from camlucida.errors import TargetError
from camlucida.frame import Preprocess
from camlucida.images import Picture
from camlucida.registry import Method
from camlucida.types import Loaded, Map, Target

NOTHING = ("zero gradient", "no evidence")


class Asked(TypedDict, total=False):
    """What `explain` takes beside the model and the pictures."""

    target: Any
    method: str | Method
    layer: Any
    preprocess: Preprocess | None
    output: Which


def net_of(model: nn.Module) -> nn.Module:
    """The module itself, of a model that knows its preprocessing."""
    return model.net if isinstance(model, Loaded) else model


def opened(model: nn.Module, x: Any, preprocess: Preprocess | None) -> tuple[Inputs, Any]:
    """What the model is called with, and ``x`` with its pictures opened, so that no file is read twice."""
    told = model.preprocess if isinstance(model, Loaded) else None
    inputs, of = prepare(net_of(model), x, preprocess or told)
    if not of.images:
        return inputs, x
    rows = zip(x if isinstance(x, list) else [x], of.images, of.names, of.notes, strict=True)
    return inputs, [
        given if isinstance(given, np.ndarray) else Picture(image, name, (notes,) if notes else ())
        for given, image, name, notes in rows
    ]


def settled(model: nn.Module, clean: Explanation, asked: Asked) -> Target:
    """What is asked of one picture, with the class and the rivals that it has undisturbed."""
    target = target_of(model, asked)
    if clean.where:  # a model's own answer may be a part of the picture, too
        raise _elsewhere(clean.facts.target)
    if not isinstance(target, ClassTarget) or clean.classes is None or clean.logits is None:
        return target
    return target.fixed(int(clean.classes[0]), clean.logits)


def target_of(model: nn.Module, asked: Asked) -> Target:
    """What is asked, as a target. Raises: TargetError for a part of the picture, which lies elsewhere in its views."""
    target = as_target(asked.get("target", top1), tuple(model.labels) if isinstance(model, Loaded) else ())
    if isinstance(target, Task):
        raise _elsewhere(str(target))
    return target


def _elsewhere(target: str) -> TargetError:
    return TargetError(f"{target}: regions and boxes are not followed into other views of a picture; use explain().")


def state_of(map: Map, parts: Sequence[maps.Status]) -> maps.Status:
    """The status of a combined map; of parts that all show nothing, nothing comes."""
    if all(p in NOTHING for p in parts):
        return parts[0] if len(set(parts)) == 1 else "no evidence"
    return maps.status(map)[0]
