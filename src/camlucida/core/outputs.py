"""What a model returns: which part of it is meant (``output=``), what it holds in words, and the class logits in it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from jaxtyping import Float
from torch import Tensor

from camlucida.core.structure import parts
from camlucida.errors import TargetError, did_you_mean
from camlucida.types import Output

Which: TypeAlias = Any
"""A key or attribute (``"logits"``), a place (``0``), a function of the model's answer, or all of it."""

_VIEWS = ("Alias", "Clone", "Select", "Slice", "Squeeze", "ToCopy", "UnsafeView", "Unsqueeze", "View", "Reshape")


def chosen(output: Output, which: Which) -> Any:
    """The part of a model's answer that is meant: by key or attribute, by place, by a function, or all of it.

    Raises: TargetError, naming what the answer holds, where it has no such part.

    >>> import torch
    >>> chosen({"masks": torch.zeros(2, 5), "boxes": torch.zeros(2, 4)}, "masks").shape
    torch.Size([2, 5])
    >>> chosen((torch.zeros(2, 5), torch.zeros(2, 4)), -1).shape
    torch.Size([2, 4])
    """
    check(which)
    if which is None or callable(which):
        return output if which is None else which(output)
    found = _named(output, which) if isinstance(which, str) else _placed(output, which)
    if found is None:
        raise TargetError(
            f"the model's answer has no part {which!r}: it is {told(output)}.{did_you_mean(str(which), fields(output))}"
        )
    return found


def check(which: Which) -> None:
    """Raises: TargetError where it cannot say which part of an answer is meant."""
    if isinstance(which, bool) or not (isinstance(which, str | int | None) or callable(which)):
        raise TargetError(f"output= is a key, an attribute, a place or a function of the answer; got {which!r}.")


def _named(output: Output, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _placed(output: Output, place: int) -> Any:
    held = parts(output)
    return held[place] if -len(held) <= place < len(held) else None


def fields(output: Output) -> dict[str, Any]:
    """What an answer holds, by key, by attribute or by place; nothing for a tensor."""
    if isinstance(output, Mapping):
        return {str(k): v for k, v in output.items()}
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    names = getattr(output, "_fields", range(len(parts(output))))
    return {str(k): v for k, v in zip(names, parts(output), strict=True)}


def told(output: Output) -> str:
    """What an answer is, in words, with its shapes.

    >>> import torch
    >>> told({"logits": torch.zeros(2, 5), "states": (torch.zeros(2, 9, 4),)})
    'a dict of logits (2, 5), states [(2, 9, 4)]'
    >>> told([])
    'an empty list'
    """
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    kind, held = type(output).__name__, fields(output)
    if not held:
        return f"an empty {kind}" if isinstance(output, Mapping | Sequence) and not isinstance(output, str) else kind
    if len(held) > 1 and all(isinstance(v, Mapping) and v.keys() for v in held.values()):
        first = next(iter(held.values()))
        return f"a {kind} of {len(held)}, the first {told(first)}"
    shown = [f"{name} {_shape(v)}" for name, v in list(held.items())[:8]]
    return f"a {kind} of {', '.join(shown)}" + (" and more" if len(held) > 8 else "")


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    if isinstance(value, list | tuple) and value:
        return f"[{', '.join(map(_shape, value[:3]))}{', …' if len(value) > 3 else ''}]"
    return told(value) if isinstance(value, Mapping) and value else type(value).__name__


def logits(output: Output, count: int | None = None) -> Float[Tensor, "b k"]:
    """The class logits in whatever a model returns, ``b k``; a model of one number a picture has one class.

    Raises: TargetError where there is none, more than one candidate, or not a row for each of ``count`` pictures.

    >>> import torch
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


def _found(output: Output) -> Float[Tensor, "b k"]:
    if isinstance(output, Tensor):
        return _as_logits(output)
    held = fields(output)
    flat = [v for v in parts(output) if isinstance(v, Tensor) and v.dim() == 2 and v.is_floating_point()]
    if boxed(output) and not flat:
        raise TargetError(
            f"the model returns detections ({told(output)}): say which, as target=cl.detection() for the best one, "
            "or cl.detection(label=3), or cl.detection(box=(left, top, right, bottom))."
        )
    for name in ("logits", "out"):
        if isinstance(held.get(name), Tensor):
            return _as_logits(held[name])
    if len(flat) == 1:
        return flat[0]
    raise TargetError(
        f"{len(flat)} outputs could be the class scores (the model returns {told(output)}): say which with output=, "
        "a key, a place or a function, or pass a target of your own, as target=lambda output: output[...][:, 281]."
    )


def ends_in_sigmoid(y: Tensor) -> bool:
    """Whether scores that still have their graph are a sigmoid's, or a view of them: probabilities, and no logits.

    >>> import torch
    >>> ends_in_sigmoid(torch.zeros(2, 1, requires_grad=True).sigmoid()[:, 0])
    True
    """
    step = y.grad_fn
    while step is not None and step.name().startswith(_VIEWS):
        step = step.next_functions[0][0]
    return step is not None and step.name().startswith("Sigmoid")


def boxed(output: Output) -> bool:
    """Whether an answer is detections: it, or what it is a list of, names boxes."""
    inner = next(iter(parts(output)), None) if isinstance(output, list | tuple) else output
    return inner is not None and any("boxes" in name for name in fields(inner))


def _as_logits(output: Tensor) -> Float[Tensor, "b k"]:
    if output.dim() == 1:
        return output[:, None]
    if output.dim() == 2 or (output.dim() > 2 and output.shape[2:].numel() == 1):
        return output.flatten(1)
    way = "target=cl.region(8) explains a class where it is predicted, or over a mask, a box or a point; or " * (
        output.dim() > 3
    )
    raise TargetError(
        f"the model returns a tensor of shape {tuple(output.shape)}, not one score a class: {way}"
        "pass a target that reduces it to one score a picture, as target=lambda y: y[:, 8].mean((1, 2))."
    )
