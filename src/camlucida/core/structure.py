"""Tensors inside whatever a layer or a model returns: tuples, lists, mappings, named tuples, dataclasses."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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


def items(made: Any) -> Sequence[tuple[Any, Any]]:
    """What a container holds, in order, each with its key: a position, a name; nothing for a tensor."""
    if isinstance(made, Mapping):
        return list(made.items())
    if isinstance(made, list | tuple):
        return list(enumerate(made))
    if dataclasses.is_dataclass(made) and not isinstance(made, type):
        return [(f.name, getattr(made, f.name)) for f in dataclasses.fields(made)]
    return []


def parts(made: Any) -> Sequence[Any]:
    """What a container holds, in order; nothing for a tensor."""
    return [part for _, part in items(made)]


def tensors(made: Any) -> list[Tensor]:
    """Every tensor in whatever a layer gave."""
    return [made] if isinstance(made, Tensor) else [t for part in parts(made) for t in tensors(part)]


def swap(made: Any, old: Tensor, new: Tensor) -> Any:
    """``made`` with one tensor replaced, whatever holds it."""
    return new if made is old else rebuilt(made, lambda _, part: swap(part, old, new))


def rebuilt(made: Any, change: Callable[[Any, Any], Any]) -> Any:
    """A container of the same kind with ``change(key, part)`` for each part; what is no container stays as it is.

    >>> rebuilt({"a": 1, "b": [2]}, lambda key, part: part if key == "b" else 5)
    {'a': 5, 'b': [2]}
    """
    changed = [(key, change(key, part)) for key, part in items(made)]
    if isinstance(made, Mapping):
        whole = dict(changed)
        return type(made)(**whole) if dataclasses.is_dataclass(made) else type(made)(whole)  # type: ignore[call-arg]
    if isinstance(made, tuple) and hasattr(made, "_fields"):
        return type(made)(*(part for _, part in changed))
    if isinstance(made, list | tuple):
        return type(made)(part for _, part in changed)
    if dataclasses.is_dataclass(made) and not isinstance(made, type):
        return dataclasses.replace(made, **dict(changed))
    return made
