"""Tensors inside whatever a layer or a model returns: tuples, lists, mappings, named tuples, dataclasses."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def feature(made: Any) -> Tensor | None:
    """The first floating tensor with at least three axes in whatever a layer gave; None where there is none.

    >>> import torch
    >>> feature({"hidden": torch.zeros(2, 5, 8), "length": 5}).shape
    torch.Size([2, 5, 8])
    """
    if isinstance(made, Tensor):
        return made if made.dim() >= 3 and made.is_floating_point() else None
    found = (feature(v) for v in parts(made))
    return next((f for f in found if f is not None), None)


def parts(made: Any) -> Sequence[Any]:
    """What a container holds, in order; nothing for a tensor."""
    if isinstance(made, Mapping):
        return list(made.values())
    if isinstance(made, list | tuple):
        return made
    if dataclasses.is_dataclass(made) and not isinstance(made, type):
        return [getattr(made, f.name) for f in dataclasses.fields(made)]
    return []


def tensors(made: Any) -> list[Tensor]:
    """Every tensor in whatever a layer gave."""
    return [made] if isinstance(made, Tensor) else [t for part in parts(made) for t in tensors(part)]


def swap(made: Any, old: Tensor, new: Tensor) -> Any:
    """``made`` with one tensor replaced, whatever holds it."""
    if made is old:
        return new
    if isinstance(made, Mapping):
        swapped = {k: swap(v, old, new) for k, v in made.items()}
        return type(made)(**swapped) if dataclasses.is_dataclass(made) else type(made)(swapped)  # type: ignore[call-arg]
    if isinstance(made, tuple) and hasattr(made, "_fields"):
        return type(made)(*(swap(v, old, new) for v in made))
    if isinstance(made, list | tuple):
        return type(made)(swap(v, old, new) for v in made)
    if dataclasses.is_dataclass(made) and not isinstance(made, type):
        return dataclasses.replace(
            made, **{f.name: swap(getattr(made, f.name), old, new) for f in dataclasses.fields(made)}
        )
    return made
