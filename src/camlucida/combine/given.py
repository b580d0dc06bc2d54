"""What is asked of a combination, what it is asked about, and what may be said of its map."""

from collections.abc import Sequence
from typing import Any, TypedDict

from torch import nn

from camlucida import maps
from camlucida.core.capture import Inputs
from camlucida.core.prepare import prepare
from camlucida.frame import Preprocess
from camlucida.images import Picture
from camlucida.registry import Method
from camlucida.types import Loaded, Map

NOTHING = ("zero gradient", "no evidence")


class Asked(TypedDict, total=False):
    """What `explain` takes beside the model and the pictures."""

    target: Any
    method: str | Method
    layer: Any
    preprocess: Preprocess | None


def net_of(model: nn.Module) -> nn.Module:
    """The module itself, of a model that knows its preprocessing."""
    return model.net if isinstance(model, Loaded) else model


def opened(model: nn.Module, x: Any, preprocess: Preprocess | None) -> tuple[Inputs, Any]:
    """What the model is called with, and ``x`` with its pictures opened, so that no file is read twice."""
    told = model.preprocess if isinstance(model, Loaded) else None
    inputs, of = prepare(net_of(model), x, preprocess or told)
    rows = zip(of.images, of.names, of.notes, strict=True) if of.images else ()
    pictures = [Picture(image, name, (notes,) if notes else ()) for image, name, notes in rows]
    return inputs, pictures or x


def state_of(map: Map, parts: Sequence[maps.Status]) -> maps.Status:
    """The status of a combined map; of parts that all show nothing, nothing comes."""
    if all(p in NOTHING for p in parts):
        return parts[0] if len(set(parts)) == 1 else "no evidence"
    return maps.status(map)[0]
